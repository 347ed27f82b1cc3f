"""Quantised GGUF tensors in the kernels' layout: read one matrix after another, interleaved in memory, without loss.

The peak is the result and a matrix or two. Rows move as whole quantised rows: query and key rows become half-split, an
expert's gate and up rows alternate in panels of 16. Where a file has them in different types, which no common writer
makes, both become Q8_0, the one case in which a number changes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.checkpoint.gguf import GgufCheckpoint
from coterie.checkpoint.names import Place
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, require_finite
from coterie.checkpoint.pieces import Files, Piece, half_split
from coterie.checkpoint.safetensors import Entry
from coterie.device import available_memory
from coterie.errors import CheckpointError
from coterie.kernels import cpu
from coterie.quant import FORMATS, Codes, PackedTensor, pack
from coterie.quant.ggml_blocks import dequantise, split
from coterie.quant.ggml_quantise import quantise
from coterie.quant.mapped import MappedMatrix
from coterie.quant.tensor import alternate_halves

__all__ = ["gguf_parts", "read_gguf_parts", "repack"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Progress = Callable[[int, int], None]
Stretch = tuple[Entry, Place]
GgufPart = PackedTensor | MappedMatrix | Tensor


def read_gguf_parts(
    checkpoint: GgufCheckpoint, progress: Progress | None = None, *, in_place: bool = False
) -> dict[str, GgufPart]:
    """What `quant.layers.install` takes: canonical names; each expert's `gate_up` and `down` by `...experts.E.`.

    Quantised matrices are packed; float ones keep their type, norms and router as float32. NaN and Inf, in scales too,
    are `CheckpointError`s. `progress(done, total)` counts bytes.
    """
    return dict(_parts(checkpoint, progress, in_place))


def gguf_parts(
    checkpoint: GgufCheckpoint, progress: Progress | None = None
) -> Iterator[tuple[str, PackedTensor | Tensor]]:
    """The same one after the other, so that who moves them elsewhere never has them all; an expert's are apart."""
    for name, part in _parts(checkpoint, progress, False):
        assert not isinstance(part, MappedMatrix)
        yield name, part


def _parts(checkpoint: GgufCheckpoint, progress: Progress | None, in_place: bool) -> Iterator[tuple[str, GgufPart]]:
    matrices: dict[str, list[Stretch]] = {}
    for entry, place in zip(checkpoint.entries, checkpoint.places, strict=True):
        matrices.setdefault(_part_name(checkpoint, place), []).append((entry, place))
    done, keep = 0, checkpoint.nbytes < available_memory("cpu") // 4
    with Files(checkpoint.files) as files:
        for name, stretches in matrices.items():
            stretches.sort(key=lambda stretch: stretch[1].first)
            mapped = _mapped(checkpoint, name, stretches)
            if mapped is None:
                yield name, _read(name, stretches, files)
            elif in_place and ".experts." in name:
                yield name, mapped
            else:
                yield name, _interleaved(mapped, stretches[0][0])
                for entry, _ in stretches:
                    checkpoint.release(entry)
            for entry, place in stretches:
                if not keep:
                    files.forget(Piece(entry, place, 0, entry.nbytes))
                done += entry.nbytes
            if progress is not None:
                progress(done, checkpoint.nbytes)


def _mapped(checkpoint: GgufCheckpoint, name: str, stretches: list[Stretch]) -> MappedMatrix | None:
    """A quantised matrix as it lies in the file, where the native kernels can take it so."""
    kinds = {entry.dtype for entry, _ in stretches}
    first, place = stretches[0]
    kind = first.dtype.lower()
    is_matrix = len(place.shape) == 2 and not name.endswith(".router")
    if len(kinds) != 1 or kind not in FORMATS or not is_matrix or not cpu.can_hold([]):
        return None
    rows = [checkpoint.mapped(entry).reshape(p.shape[0], -1) for entry, p in stretches]
    if name.endswith(".gate_up") and len(rows) == 1:
        rows = np.split(rows[0], 2)
    N, K, has_up = sum(map(len, rows)), place.shape[1], len(rows) > 1
    if has_up and N % 64:
        return None  # an expert too narrow for panels that alternate
    head_rows = N // place.n_heads if place.n_heads else 0
    return MappedMatrix(first.dtype, (N, K), rows[0], rows[1] if has_up else None, head_rows)


def _interleaved(mapped: MappedMatrix, entry: Entry) -> PackedTensor:
    packed, n_bad = mapped.interleaved()
    if n_bad:
        raise CheckpointError(
            f"{entry.file}: {entry.name!r} contains {n_bad} NaN or Inf among its scales; the weights are damaged, get "
            "them again"
        )
    return packed


def repack(kind: str, rows: Bytes, label: str) -> PackedTensor:
    """Quantised rows, uint8 [N, bytes of a row], in the kernels' layout: the one place where this happens."""
    p = split(kind, rows)
    for scale in (p.scale, p.offset):
        if scale is not None:
            require_finite(np.ascontiguousarray(scale).reshape(-1).view(np.uint8), "F16", f"{label}: a scale")
    fields = (None if a is None else torch.from_numpy(a) for a in (p.u, p.scale, p.offset, p.sub_scale, p.sub_offset))
    return pack(FORMATS[kind.lower()], Codes(*fields))  # type: ignore[arg-type]


def _part_name(checkpoint: GgufCheckpoint, place: Place) -> str:
    """`layers.3.moe.experts.7.down` for a place in expert 7's stretch of `layers.3.moe.experts.down`."""
    stem, _, last = place.name.rpartition(".")
    if not stem.endswith(".experts"):
        return place.name
    c = checkpoint.config
    expert = place.first // (c.hidden_size * c.intermediate_size * (2 if last == "gate_up" else 1))
    return f"{stem}.{expert}.{last}"


def _read(name: str, stretches: list[Stretch], files: Files) -> PackedTensor | Tensor:
    kinds = {entry.dtype for entry, _ in stretches}
    rows = [_rows(entry, place, files) for entry, place in stretches]
    label = f"{stretches[0][0].file}: {stretches[0][0].name!r}"
    is_gate_up = name.endswith("gate_up")
    if kinds <= FILE_DTYPES.keys():
        return _float(name, stretches, rows, label)
    shape = stretches[0][1].shape
    if name.endswith(".router") or len(shape) == 1:
        return _finite(torch.from_numpy(dequantise(kinds.pop(), rows[0])).view(shape), label)
    n_rows = sum(map(len, rows))
    if is_gate_up and n_rows % 64:
        raise CheckpointError(f"{label} has {n_rows // 2} rows an expert, and packed experts need a multiple of 32")
    if len(kinds) > 1:
        numbers = [dequantise(entry.dtype, r) for (entry, _), r in zip(stretches, rows, strict=True)]
        kinds, rows = {"Q8_0"}, [quantise("Q8_0", n) for n in numbers]
    joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if is_gate_up:
        joined = alternate_halves(torch.from_numpy(joined)).contiguous().numpy()
    return repack(kinds.pop(), joined, label)


def _finite(numbers: Tensor, label: str) -> Tensor:
    require_finite(numbers.view(-1).view(torch.uint8).numpy(), "F32", label)
    return numbers


def _rows(entry: Entry, place: Place, files: Files) -> Bytes:
    """Bytes of a stretch, a row of the matrix a row, query and key rows half-split."""
    raw = np.empty(entry.nbytes, np.uint8)
    files.read(Piece(entry, place, 0, entry.nbytes), raw)
    n_rows = place.shape[0] if len(place.shape) > 1 else 1
    row_bytes = entry.nbytes // n_rows
    if place.n_heads:
        raw = half_split(raw, Place(place.name, 0, (n_rows, row_bytes), place.n_heads), 1)
    return raw.reshape(n_rows, row_bytes)


def _float(name: str, stretches: list[Stretch], rows: list[Bytes], label: str) -> Tensor:
    numbers = []
    for (entry, place), r in zip(stretches, rows, strict=True):
        require_finite(r.reshape(-1), entry.dtype, label)
        numbers.append(as_torch(r.reshape(-1), entry.dtype).view(place.shape))
    whole = numbers[0] if len(numbers) == 1 else torch.cat([n.float() for n in numbers]).to(numbers[0].dtype)
    return whole.float() if whole.ndim == 1 or name.endswith(".router") else whole
