"""A GGUF file (version 3) from keys, tensors and their bytes; whole or not at all. `gguf_header.py` has the layout."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.atomic import new_file
from coterie.checkpoint.gguf_header import MAGIC, NUMBER_FORMATS, VALUE_TYPES
from coterie.quant.ggml_blocks import GGML_TYPES

__all__ = ["Value", "WrittenTensor", "write_gguf"]

Value = tuple[str, Any]  # ("u32", 7), ("string", "llama"), ("array string", [b"a", b"b"]), ("array f32", [0.5])
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """`shape` as numpy has it; `kind` a name of `GGML_TYPES`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int


def write_gguf(
    path: Path, keys: Mapping[str, Value], tensors: Sequence[WrittenTensor], contents: Iterable[Iterable[Any]]
) -> None:
    """Write the file; `contents` are the bytes of each tensor in order, cut anywhere."""
    head = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for key, (kind, value) in keys.items():
        head += _string(key.encode()) + _typed(kind, value)
    offset = 0
    for t in tensors:
        shape = t.shape[::-1]
        head += _string(t.name.encode()) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", GGML_TYPES[t.kind].number, offset)
        offset += t.nbytes + _padding(t.nbytes)
    head += bytes(_padding(len(head)))
    with new_file(path) as f:
        f.write(head)
        for t, content in zip(tensors, contents, strict=True):
            start = f.tell()
            for piece in content:
                f.write(piece)
            written = f.tell() - start
            assert written == t.nbytes, f"{t.name}: wrote {written} bytes, announced {t.nbytes}"
            f.write(bytes(_padding(written)))


def _padding(n: int) -> int:
    return -n % _ALIGNMENT


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _typed(kind: str, value: Any) -> bytes:
    of_array = kind.removeprefix("array ")
    if of_array == kind:
        number = struct.pack("<I", VALUE_TYPES.index(kind))
        return number + (
            _string(value.encode("utf-8", "replace"))
            if kind == "string"
            else struct.pack("<" + NUMBER_FORMATS[kind], value)
        )
    start = struct.pack("<IIQ", VALUE_TYPES.index("array"), VALUE_TYPES.index(of_array), len(value))
    if of_array == "string":
        return start + b"".join(map(_string, value))
    return start + np.asarray(value, np.dtype(NUMBER_FORMATS[of_array]).newbyteorder("<")).tobytes()
