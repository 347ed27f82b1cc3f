"""safetensors files, read without trust and written without leaving halves behind.

The format: 8 bytes of little-endian header length, that many bytes of JSON (name -> dtype, shape, [begin, end) of the
data that follows), then the data, without holes (https://github.com/huggingface/safetensors). Reading looks at the
header only; every number in it is checked against the file's length before anyone allocates by it. Nothing here needs
torch.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeGuard

from coterie.checkpoint.atomic import new_file
from coterie.checkpoint.json_text import parse_object
from coterie.errors import CheckpointError

__all__ = ["ITEM_BITS", "Entry", "TensorSpec", "read_entries", "read_header", "write_file"]

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # the reference reader's own bound
_MOST_DIMENSIONS = 8
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `nbytes` bytes from byte `offset` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BITS[self.dtype] // 8


def read_entries(path: Path) -> list[Entry]:
    """The tensors of a file in the order of their bytes; `CheckpointError` for anything out of order."""
    header, start, n_data = read_header(path)
    header.pop("__metadata__", None)
    _require_length(path, header, start, n_data)
    entries = [_entry(path, name, fields, start, n_data) for name, fields in header.items()]
    entries.sort(key=lambda e: (e.offset, e.nbytes))
    for before, e in pairwise(entries):
        if before.offset + before.nbytes > e.offset:
            raise CheckpointError(
                f"{path}: the data of {before.name!r} and {e.name!r} overlap; the file is damaged, get it again"
            )
    end = start
    for e in entries:
        if e.offset != end:
            raise CheckpointError(
                f"{path}: before the data of {e.name!r} there is a hole of {e.offset - end:,} bytes; the file is "
                "damaged, get it again"
            )
        end += e.nbytes
    if end != start + n_data:
        raise CheckpointError(
            f"{path} has {start + n_data:,} bytes and its header describes {end:,}; the file is damaged, get it again"
        )
    return entries


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header as JSON, the byte at which the data starts, and how many bytes of data the file has."""
    try:
        with open(path, "rb", opener=_nonblocking) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            prefix = f.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > status.st_size - 8:
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: its header should have {length:,} bytes, the file "
                    f"has {status.st_size:,}; get it again"
                )
            if length > _LARGEST_HEADER:
                raise CheckpointError(f"{path}: a header of {length:,} bytes, expected at most {_LARGEST_HEADER:,}")
            raw = f.read(length)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    if raw[:1] != b"{":
        raise CheckpointError(f"{path} is no safetensors file: its header does not start with '{{'")
    return parse_object(raw, f"{path} (header)", CheckpointError), 8 + length, status.st_size - 8 - length


def _require_length(path: Path, header: dict[str, Any], start: int, n_data: int) -> None:
    offsets = {name: fields.get("data_offsets") for name, fields in header.items() if isinstance(fields, dict)}
    end, name = max(((v[1], n) for n, v in offsets.items() if _is_counts(v) and len(v) == 2), default=(0, ""))
    if end > n_data:
        raise CheckpointError(
            f"{path} is truncated: {name!r} should end at byte {start + end:,}, the file has {start + n_data:,}; "
            "get it again"
        )


def write_file(
    path: Path,
    specs: Sequence[TensorSpec],
    pieces: Iterable[Any],
    metadata: Mapping[str, str] | None = None,
    seen: Callable[[Any], None] | None = None,
) -> None:
    """Write `specs` and then their bytes, given as buffers in that order, cut anywhere.

    The file appears under its name only when it is whole and on the disk; whatever goes wrong, no part of it stays.
    `seen` gets every buffer as it is in memory, the header included: what a digest needs that trusts no disk.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.nbytes]}
        end += spec.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with new_file(path) as f:
        for piece in chain((len(raw).to_bytes(8, "little") + raw,), pieces):
            f.write(piece)
            if seen is not None:
                seen(piece)
        assert f.tell() == 8 + len(raw) + end, f"{path}: wrote {f.tell()} bytes, announced {8 + len(raw) + end}"


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not make us wait


def _entry(path: Path, name: str, fields: Any, start: int, n_data: int) -> Entry:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: {name!r} has {what}; the file is damaged, get it again")

    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        raise refuse("a header entry without exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise refuse(f"the unknown dtype {dtype!r}")
    if not _is_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise refuse(f"the shape {repr(shape)[:80]}, expected at most {_MOST_DIMENSIONS} whole numbers from 0 up")
    if not _is_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= n_data:
        raise refuse(f"the offsets {repr(offsets)[:80]}, expected a range within the {n_data:,} bytes of data")
    nbytes = offsets[1] - offsets[0]
    if math.prod(shape) * ITEM_BITS[dtype] != nbytes * 8:
        raise refuse(f"{nbytes:,} bytes, which do not hold shape {shape} of {dtype}")
    return Entry(name, dtype, tuple(shape), path, start + offsets[0], nbytes)


def _is_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)
