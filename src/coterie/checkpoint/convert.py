"""One format into another without building a model: tensor by tensor, a few megabytes in memory.

Where the type stays, every byte stays: converting there and back gives the same tensors. A packed folder becomes the
plain numbers that its matrices stand for.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from coterie.checkpoint.atomic import new_folder, require_disk
from coterie.checkpoint.convert_plan import Report
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.gguf_convert import convert_to_gguf
from coterie.checkpoint.huggingface import copy_files, write_json, write_shards, write_sidecars
from coterie.checkpoint.mistral import config_to_params
from coterie.checkpoint.names import Naming, Place, is_exact
from coterie.checkpoint.numbers import FILE_DTYPES, file_type
from coterie.checkpoint.opened import Checkpoint, require_plain_router
from coterie.checkpoint.packed_plain import plan_any
from coterie.checkpoint.pieces import Files
from coterie.checkpoint.safetensors import Entry, write_file
from coterie.checkpoint.tied import require_tied_equal
from coterie.checkpoint.vocabulary import write_vocabulary
from coterie.errors import RequestError, nearest
from coterie.quant.recipe import TYPES, Recipe
from coterie.tokenizer import tokenizer_files

__all__ = ["FORMATS", "convert"]

FORMATS = ("huggingface", "mistral", "gguf", "packed")
Progress = Callable[[int, int], None]


def convert(
    src: Path,
    dst: Path,
    *,
    to: str,
    type: str | None = None,
    progress: Progress | None = None,
    method: str = "rtn",
    calibration: Sequence[int] | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Write the model in `src` as `dst` in the format `to`, its numbers as `type` (None: as is; packed ones as bf16).

    Tokenizer files and generation_config.json are copied, or made of a GGUF file's vocabulary, or into one. NaN, Inf
    and numbers too large for float16 are errors that name the tensor. `dst` (a folder, or a .gguf file) must not exist;
    it appears whole or not at all. `progress(done, total)` counts bytes read. Of packed ones only: `method`,
    `calibration` (token ids of a text), and `notice`, which hears of what does not go as usual: see `packed_write`.
    """
    if to not in FORMATS:
        raise RequestError(f"the format {to!r} is unknown, expected one of {', '.join(FORMATS)}{nearest(to, FORMATS)}")
    src, dst = Path(src), Path(dst)
    if to != "packed" and (method != "rtn" or calibration is not None):
        raise RequestError(f"a method and a calibration text are for packed files, and the format is {to!r}")
    checkpoint = open_checkpoint(src)
    if to != "huggingface":
        require_plain_router(checkpoint, {"mistral": "Mistral folders", "gguf": "GGUF files"}.get(to, "packed folders"))
    if checkpoint.format == "packed" and to != "packed":
        type = type or "bf16"
    if type is not None:
        import_module("torch")  # not later, beside half a folder: Ctrl-C during an import may end the process at once
    if to == "packed":
        _to_packed(checkpoint, dst, type, method, calibration, progress, notice)
    elif to == "gguf":
        convert_to_gguf(checkpoint, dst, type, progress)
    else:
        code = None if type is None else file_type(type)[1]
        _to_folder(checkpoint, dst, to, code, progress)


def _to_packed(
    checkpoint: Checkpoint,
    dst: Path,
    type: str | None,
    method: str,
    calibration: Sequence[int] | None,
    progress: Progress | None,
    notice: Callable[[str], None],
) -> None:
    if type is None:
        raise RequestError(f"packed files need to know how many bits: --type {', '.join(TYPES)}")
    recipe = Recipe.of(type, method)
    if checkpoint.format == "packed":
        notice(f"{checkpoint.path} is packed already; what it lost then comes on top of what {type} loses")
    from coterie.checkpoint.packed_write import write_packed

    write_packed(checkpoint, dst, recipe, calibration=calibration, progress=progress, notice=notice)


def _to_folder(checkpoint: Checkpoint, dst: Path, to: str, code: str | None, progress: Progress | None) -> None:
    naming: Naming = "mistral" if to == "mistral" else "huggingface"
    work = plan_any(checkpoint, naming, lambda place, entry: _code(place, entry, code))
    if quantised := {w.dtype for w in work} - FILE_DTYPES.keys():
        raise RequestError(
            f"{checkpoint.path} has numbers of type {', '.join(sorted(quantised))}, which {to} files have not; say as "
            "what to write them with --type bf16, f16 or f32"
        )
    config = checkpoint.config if code is None else replace(checkpoint.config, torch_dtype=FILE_DTYPES[code])
    extras = _companions(checkpoint.path)
    with new_folder(dst) as partial, Files(checkpoint.files) as files:
        require_disk(dst, sum(w.nbytes for w in work))
        require_tied_equal(checkpoint, files)
        report = Report(progress, checkpoint.nbytes)
        contents = (w.contents(files, report) for w in work)
        if to == "huggingface":
            write_shards(partial, [w.spec for w in work], contents)
            write_sidecars(partial, config, config.torch_dtype, extras)
        else:
            pieces = (piece for content in contents for piece in content)
            write_file(partial / "consolidated.safetensors", [w.spec for w in work], pieces)
            write_json(partial / "params.json", config_to_params(config))
            copy_files(extras, partial)
        if checkpoint.path.is_file():
            write_vocabulary(checkpoint.path, partial)


def _code(place: Place, entry: Entry, code: str | None) -> str:
    return entry.dtype if code is None or is_exact(place.name) else code


def _companions(src: Path) -> list[Path]:
    """The files beside the weights that go along: the tokenizer's, and how the model's makers generate with it."""
    if not src.is_dir():
        return []
    generation = src / "generation_config.json"
    return [*tokenizer_files(src), *([generation] if generation.is_file() else [])]
