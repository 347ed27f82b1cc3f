"""What a packed folder holds beside its weights: configuration, tokenizer, card and manifest, so that it stands alone.

config.json says `quantization_config: {"format": "coterie-packed"}`. It names no method on purpose: transformers passes
over a method that it does not know, and would fill a model with noise, but refuses one that is missing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.checkpoint.atomic import new_file
from coterie.checkpoint.huggingface import write_sidecars
from coterie.checkpoint.manifest import files_of, save_manifest
from coterie.checkpoint.numbers import size_text
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.quantise import Planned
from coterie.checkpoint.vocabulary import write_vocabulary
from coterie.tokenizer import tokenizer_files

__all__ = ["MARK", "write_packed_sidecars"]

MARK = {"format": "coterie-packed"}
_PIECE = 8 << 20


def write_packed_sidecars(checkpoint: Checkpoint, folder: Path, about: dict[str, Any], planned: list[Planned]) -> None:
    """Everything but the weights, the manifest last."""
    src, config = checkpoint.path, checkpoint.config
    marked = replace(config, extra=config.extra | {"quantization_config": MARK})
    is_folder = src.is_dir()
    generation = src / "generation_config.json"
    extras = [*tokenizer_files(src), *([generation] if generation.is_file() else [])] if is_folder else []
    write_sidecars(folder, marked, config.torch_dtype, extras)
    if not is_folder:
        write_vocabulary(src, folder)
    with new_file(folder / "README.md") as f:
        f.write("\n".join(_card(src.name, about, planned)).encode("utf-8", "replace"))
    names = [name for name in files_of(folder) if name not in ("done", "importance.safetensors")]
    save_manifest(folder, {name: _digest(folder / name) for name in names})


def _card(name: str, about: dict[str, Any], planned: list[Planned]) -> Iterator[str]:
    yield from ("---", "library_name: coterie", "tags: [mixtral, quantized]", "---", "")
    yield from (f"# {name}, packed by coterie as {about['type']}", "")
    method = {"rtn": "round to nearest with searched scales", "hqq": "half-quadratic quantization"}[about["method"]]
    text = about["calibration"]
    weighed = f"inputs weighed by {text['tokens']:,} tokens of a text" if text else "no calibration text"
    yield from (f"Method: {method}; {weighed}. `coterie inspect` shows the bits of every part as they are on disk.", "")
    yield from ("| part | format | bits per weight | size |", "|---|---|---:|---:|")
    parts: dict[tuple[str, str], tuple[int, int]] = {}
    for p in planned:
        n, nbytes = parts.get(key := (p.part, p.format.label if p.format else p.dtype), (0, 0))
        count = 1
        for size in p.shape:
            count *= size
        parts[key] = n + count, nbytes + p.nbytes
    for (part, label), (n, nbytes) in parts.items():
        yield f"| {part} | {label} | {8 * nbytes / n:.2f} | {size_text(nbytes)} |"
    for reason in sorted(set(about["plain"].values())):
        yield from ("", f"{sum(r == reason for r in about['plain'].values())} matrices are not packed: {reason}.")
    if text and text["unweighted"]:
        yield from ("", f"Experts that saw too few tokens and are unweighted: {', '.join(text['unweighted'])}.")
    yield from ("", "The weights are those of the model they were made from, and so is their licence.", "")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
