"""A state in shards: every rank writes its part of each tensor, and any number of ranks reads them back.

The files are those of `torch.distributed.checkpoint`'s safetensors storage, `shard-RANK-model-PART-of-N.safetensors`
with ranks from 1; in their headers `DCP_SHARDING_INFO` says where in the whole tensor a part begins. (The default
storage of that package is made of pickles; these are not.) Tensors without a dimension, such as the optimizer's count
of steps, stand in `scalars.json`. Reading needs no other rank: each takes from the files what it holds.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.checkpoint.json_text import parse_object
from coterie.checkpoint.safetensors import read_entries, read_header
from coterie.errors import CheckpointError

__all__ = ["describe", "read_shards", "write_shards"]

SCALARS = "scalars.json"
_PART_BYTES = 1 << 30  # of a file, about: the storage holds a whole one in memory while it writes it
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_SCALARS = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}


class _Whole(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


def write_shards(folder: Path, tensors: Mapping[str, Tensor], n_ranks: int, is_first: bool) -> None:
    """Every rank calls this, with the same names and a folder that all of them see; `ResourceError` if it cannot be.

    A DTensor is written by the ranks that hold its parts; of a plain tensor, the same on all ranks, one copy.
    """
    scalars = {name: t for name, t in tensors.items() if t.ndim == 0}
    if is_first:
        _write_scalars(folder / SCALARS, scalars)
    others = {name: t.detach() for name, t in tensors.items() if t.ndim > 0}
    writer = HuggingFaceStorageWriter(str(folder), _parts(others, n_ranks), save_distributed=True)
    with _disk_errors_of_all(folder):
        save(dict(others), storage_writer=writer)


def read_shards(
    folder: Path, empty: Callable[[str, tuple[int, ...], torch.dtype], Tensor] | None = None
) -> dict[str, Tensor]:
    """What `write_shards` wrote, by however many ranks; `CheckpointError` where parts are missing or misplaced.

    `empty(name, shape, dtype)` gives the tensor to fill: a DTensor gets the part that this rank holds. Without it, all
    of every tensor is read into main memory. A safetensors file that is no shard counts as one with whole tensors.
    """
    there = describe(folder)
    scalars = _read_scalars(folder / SCALARS) | _scalars_of_files(folder)
    tensors = {name: (empty or _empty)(name, *whole) for name, whole in there.items() if name not in scalars}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != there[name].shape:
            raise CheckpointError(
                f"{folder}: {name!r} has shape {list(there[name].shape)}, expected {list(tensor.shape)}; start again "
                "with --fresh"
            )
    reader, planner = HuggingFaceStorageReader(str(folder)), DefaultLoadPlanner()
    try:
        metadata = reader.read_metadata()
        planner.set_up_planner(dict(tensors), metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        reader.read_data(planner.finish_plan(plan), planner).wait()
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as e:
        raise CheckpointError(f"{folder} is not a training state that can be resumed ({e})") from None
    return tensors | scalars


def _parts(tensors: Mapping[str, Tensor], n_ranks: int) -> dict[str, int]:
    """Which file of a rank each tensor goes to, the first is 1: as many in one as have about `_PART_BYTES` there."""
    part, n_bytes, parts = 1, 0, {}
    for name, t in tensors.items():
        parts[name] = part
        n_bytes += t.numel() * t.element_size() // n_ranks
        if n_bytes > _PART_BYTES:
            part, n_bytes = part + 1, 0
    return parts


def describe(folder: Path) -> dict[str, _Whole]:
    """The tensors of all files together, after their parts were found to make up the whole of each."""
    sizes: dict[str, tuple[int, ...]] = {}
    covered: dict[str, int] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in sorted(folder.glob("*.safetensors")):
        starts = _starts(path)
        for entry in read_entries(path):
            start = starts.get(entry.name) if starts is not None else [0] * len(entry.shape)
            if start is None or not _are_counts(start, len(entry.shape)) or entry.dtype not in _DTYPES:
                raise CheckpointError(f"{path}: where the part of {entry.name!r} belongs is not to be read from it")
            end = tuple(a + n for a, n in zip(start, entry.shape, strict=True))
            sizes[entry.name] = tuple(map(max, sizes.get(entry.name, end), end))
            covered[entry.name] = covered.get(entry.name, 0) + math.prod(entry.shape)
            if dtypes.setdefault(entry.name, _DTYPES[entry.dtype]) != _DTYPES[entry.dtype]:
                raise CheckpointError(f"{path}: {entry.name!r} is of another dtype than in the files before it")
    for name, shape in sizes.items():
        if covered[name] != math.prod(shape):
            raise CheckpointError(
                f"{folder}: the parts of {name!r} hold {covered[name]:,} of {math.prod(shape):,} elements; a file is "
                "missing or damaged"
            )
    return {name: _Whole(shape, dtypes[name]) for name, shape in sizes.items()}


def _starts(path: Path) -> dict[str, Any] | None:
    """Name -> where in the whole tensor this file's part begins; None for a file that does not speak of parts."""
    metadata = read_header(path)[0].get("__metadata__")
    raw = metadata.get("DCP_SHARDING_INFO") if isinstance(metadata, dict) else None
    if not isinstance(raw, str):
        return None
    info = parse_object(raw.encode(), f"{path}: DCP_SHARDING_INFO", CheckpointError)
    return {name: v.get("saved_offsets") if isinstance(v, dict) else None for name, v in info.items()}


def _are_counts(value: Any, n: int) -> bool:
    return isinstance(value, list) and len(value) == n and all(type(v) is int and v >= 0 for v in value)


def _empty(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _scalars_of_files(folder: Path) -> dict[str, Tensor]:
    """Those that are no shards may hold tensors without a dimension too, which the storage cannot read."""
    names = {
        entry.name: entry.file
        for path in folder.glob("*.safetensors")
        for entry in read_entries(path)
        if not entry.shape
    }
    scalars = {}
    for name, path in names.items():
        with safe_open(path, framework="pt") as file:
            scalars[name] = file.get_tensor(name)
    return scalars


def _write_scalars(path: Path, scalars: Mapping[str, Tensor]) -> None:
    plain = {name: [str(t.dtype).removeprefix("torch."), t.item()] for name, t in scalars.items()}
    with disk_errors(path), new_file(path) as file:
        file.write(json.dumps(plain, indent=1, allow_nan=False).encode())


def _read_scalars(path: Path) -> dict[str, Tensor]:
    if not path.exists():  # one rank writes them with the other tensors
        return {}
    try:
        raw = parse_object(path.read_bytes(), str(path), CheckpointError)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    scalars = {}
    for name, pair in raw.items():
        match pair:
            case [str(dtype), int() | float() as value] if dtype in _SCALARS:
                scalars[name] = torch.tensor(value, dtype=_SCALARS[dtype])
            case _:
                raise CheckpointError(f"{path}: {name!r} is {repr(pair)[:80]}, expected [dtype, number]")
    return scalars


@contextmanager
def _disk_errors_of_all(folder: Path) -> Iterator[None]:
    """The storage raises an exception of its own, with those of all ranks in it."""
    try:
        yield
    except CheckpointException as e:
        causes = [error for error, _ in e.failures.values()]
        with disk_errors(folder):
            raise next((c for c in causes if isinstance(c, OSError)), causes[0]) from None
