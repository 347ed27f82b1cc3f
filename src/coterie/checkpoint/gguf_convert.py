"""A model of any format as one GGUF file that llama.cpp loads: weights, configuration, vocabulary, chat template.

Norms and routers stay float32. With `q4_0` the output head becomes Q8_0, as 4 bits cost most there; rows that are no
whole blocks of 32 become F16.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from coterie.checkpoint.atomic import disk_errors, require_disk
from coterie.checkpoint.convert_plan import Report, Work
from coterie.checkpoint.gguf_metadata import config_to_metadata
from coterie.checkpoint.gguf_write import Value, WrittenTensor, write_gguf
from coterie.checkpoint.names import Place, file_shape
from coterie.checkpoint.numbers import FILE_DTYPES, FILE_TYPES
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed_plain import plan_any
from coterie.checkpoint.pieces import Files
from coterie.checkpoint.safetensors import Entry
from coterie.checkpoint.tied import require_tied_equal
from coterie.checkpoint.vocabulary import open_vocabulary, template_of
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ConfigError, RequestError, nearest
from coterie.quant.ggml_blocks import GGML_TYPES
from coterie.tokenizer.gguf_export import vocabulary_keys

__all__ = ["convert_to_gguf"]

_QUANTISED = {"q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type


def convert_to_gguf(
    checkpoint: Checkpoint, dst: Path, type: str | None, progress: Callable[[int, int], None] | None
) -> None:
    """Write the file `dst`, which must not exist; `type` None keeps the type of each tensor."""
    code = None if type is None else _code(type)
    if dst.suffix != ".gguf":
        raise RequestError(f"{dst} should have a name that ends in .gguf")
    if dst.exists() or dst.is_symlink():
        raise CheckpointError(f"{dst} exists already; name a file that does not, or remove it first")
    import_module("torch")  # routers become float32
    config = checkpoint.config
    work = plan_any(checkpoint, "gguf", lambda place, entry: _type_of(place, entry, code, config))
    if quantised := {w.dtype for w in work} - _FILE_TYPES.keys():
        raise RequestError(
            f"{checkpoint.path} has numbers of type {', '.join(sorted(quantised))}, which are not written; say "
            "as what to write them with --type q8_0, q4_0, bf16, f16 or f32"
        )
    groups = [list(group) for _, group in groupby(work, key=lambda w: w.name)]
    tensors = [_tensor(group) for group in groups]
    keys = _keys(checkpoint, code or _most(work))
    with disk_errors(dst), Files(checkpoint.files) as files:
        require_disk(dst, sum(t.nbytes for t in tensors))
        require_tied_equal(checkpoint, files)
        report = Report(progress, checkpoint.nbytes)
        write_gguf(dst, keys, tensors, (_contents(group, files, report) for group in groups))


def _code(name: str) -> str:
    if name in _QUANTISED:
        return _QUANTISED[name]
    if name in FILE_TYPES:
        return FILE_TYPES[name][1]
    known = (*_QUANTISED, *FILE_TYPES)
    raise ConfigError(
        f"the type {name!r} is unknown, expected q8_0, q4_0, bf16, f16 or f32 for a GGUF file{nearest(name, known)}"
    )


def _type_of(place: Place, entry: Entry, code: str | None, config: ModelConfig) -> str:
    if len(place.shape) == 1 or place.name.endswith(".router"):
        return "F32"
    code = code or entry.dtype
    if place.shape[-1] % GGML_TYPES[code].size:
        return "F16"
    is_head = place.name == ("embed" if config.tie_word_embeddings else "head")
    return "Q8_0" if code == "Q4_0" and is_head else code


def _most(work: list[Work]) -> str:
    size: dict[str, int] = {}
    for w in work:
        size[w.dtype] = size.get(w.dtype, 0) + w.nbytes
    return max(size, key=lambda code: size[code])


def _tensor(group: list[Work]) -> WrittenTensor:
    first, nbytes = group[0], sum(w.nbytes for w in group)
    return WrittenTensor(first.name, first.dtype, file_shape(first.name, [w.place for w in group]), nbytes)


def _contents(group: list[Work], files: Files, report: Report) -> Iterator[Any]:
    return (piece for w in group for piece in w.contents(files, report))


def _keys(checkpoint: Checkpoint, code: str) -> dict[str, Value]:
    config = checkpoint.config
    keys: dict[str, Value] = config_to_metadata(config, checkpoint.path.resolve().name.removesuffix(".gguf"))
    keys["general.file_type"] = ("u32", _FILE_TYPES[code])
    if code not in FILE_DTYPES:
        keys["general.quantization_version"] = ("u32", 2)
    return keys | vocabulary_keys(
        open_vocabulary(checkpoint.path).tokenizer,
        template_of(checkpoint.path),
        vocab_size=config.vocab_size,
        bos_id=config.bos_token_id,
        eos_ids=config.eos_ids,
    )
