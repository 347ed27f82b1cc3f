"""What a conversion does: for each tensor to be written, the one stretch of an old file that it is made of.

What is written is one stretch per expert, so each is part of exactly one old tensor, whichever naming the source has.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coterie.checkpoint.names import Naming, Place, places
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, convert_into, plain, require_finite
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.pieces import Files, cut, half_split, interleave, n_bytes
from coterie.checkpoint.safetensors import ITEM_BITS, Entry, TensorSpec
from coterie.errors import CheckpointError
from coterie.quant.ggml_blocks import GGML_TYPES
from coterie.quant.ggml_quantise import quantise

__all__ = ["Report", "Work", "plan"]

Progress = Callable[[int, int], None]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Report:
    """Adds up bytes for the caller's progress."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._done, self._total = progress, 0, total

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class Work:
    """A stretch to be written as `dtype`, and the stretch of an old file that holds it."""

    name: str
    dtype: str  # F32, F16, BF16, or a quantised type of GGUF
    source: Entry
    place: Place  # of the stretch; n_heads > 0: the old rows are interleaved
    new_heads: int  # > 0: the new rows are

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.source.shape)

    @property
    def nbytes(self) -> int:
        return n_bytes(self.dtype, self.source.n_elements)

    def contents(self, files: Files, report: Report) -> Iterator[Bytes]:
        """The new bytes, piece by piece; the pieces are whole heads where rows move, and whole blocks."""
        for raw, code, label, n_read in self.read(files):
            require_finite(raw, code, label)
            yield self._converted(self._moved(raw, code), code, label)
            report.add(n_read)

    def read(self, files: Files) -> Iterator[tuple[Bytes, str, str, int]]:
        """The old numbers, piece by piece: their bytes, their type, what to call them, how many bytes were read."""
        cut_place = replace(self.place, n_heads=self.place.n_heads or self.new_heads)
        for piece in cut(self.source, cut_place, multiple=GGML_TYPES[self.dtype].size):
            raw = np.empty(piece.nbytes, np.uint8)
            files.read(piece, raw)
            yield *plain(raw, self.source.dtype), piece.label, piece.nbytes

    def _moved(self, raw: Bytes, code: str) -> Bytes:
        if bool(self.place.n_heads) == bool(self.new_heads):
            return raw
        item_bytes = ITEM_BITS[code] // 8
        if self.place.n_heads:
            return half_split(raw, self.place, item_bytes)
        return interleave(raw, replace(self.place, n_heads=self.new_heads), item_bytes)

    def _converted(self, raw: Bytes, code: str, label: str) -> Bytes:
        if self.dtype == code:
            return raw
        import torch

        source = as_torch(raw, code)
        if self.dtype in FILE_DTYPES:
            target = torch.empty(source.shape, dtype=getattr(torch, FILE_DTYPES[self.dtype]))
            convert_into(target, source, label)
            new: Bytes = target.view(torch.uint8).numpy()
            return new
        blocks = quantise(self.dtype, source.float().view(1, -1).numpy()).reshape(-1, GGML_TYPES[self.dtype].nbytes)
        if not np.isfinite(np.ascontiguousarray(blocks[:, :2]).view(np.float16)).all():
            largest = float(source.abs().max())
            raise CheckpointError(f"{label} contains {largest:.4g}, too much for the scales of {self.dtype}; use bf16")
        return blocks.reshape(-1)


def plan(checkpoint: Checkpoint, naming: Naming, type_of: Callable[[Place, Entry], str]) -> list[Work]:
    """What to write, in order, and from where; `type_of(place, old entry)` is the new type."""
    held: dict[str, list[tuple[Place, Entry]]] = {}
    for entry, place in zip(checkpoint.entries, checkpoint.places, strict=True):
        held.setdefault(place.name, []).append((place, entry))
    for stretches in held.values():
        stretches.sort(key=lambda stretch: stretch[0].first)
    work = []
    for name, new in places(checkpoint.config, naming):
        stretches = held[new.name]
        old, entry = stretches[bisect_right(stretches, new.first, key=lambda stretch: stretch[0].first) - 1]
        offset = entry.offset + n_bytes(entry.dtype, new.first - old.first)
        source = replace(entry, shape=new.shape, offset=offset, nbytes=n_bytes(entry.dtype, new.n_elements))
        work.append(Work(name, type_of(new, entry), source, replace(new, n_heads=old.n_heads), new.n_heads))
    return work
