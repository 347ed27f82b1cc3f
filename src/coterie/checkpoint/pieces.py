"""Reading one tensor's bytes in pieces of a few megabytes, in canonical order.

Interleaved query and key rows come out half-split: row i of a head goes to i/2 if even, to P/2 + (i-1)/2 if odd. With
P=4 the rows 0 1 2 3 of a file become rows 0 2 1 3. Such pieces are whole heads, so no more than a piece is ever held.
Linux reads ahead for one reader a file; for several threads it must be told what comes, in steps that it does not cut.
Shapes: P head width, D model width.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.names import Place
from coterie.checkpoint.safetensors import ITEM_BITS, Entry
from coterie.errors import CheckpointError
from coterie.quant.ggml_blocks import GGML_TYPES

__all__ = ["PIECE_BYTES", "Files", "Piece", "cut", "half_split", "interleave", "n_bytes"]

PIECE_BYTES = 8 << 20
_AHEAD = 512 << 10  # bytes; one request for more than the disk's largest transfer is shortened to that
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Piece:
    """`nbytes` bytes from byte `start` of an entry; they fill the place from element `first` (of the place) on."""

    entry: Entry
    place: Place
    start: int
    nbytes: int

    @property
    def first(self) -> int:
        return _n_elements(self.entry.dtype, self.start)

    @property
    def label(self) -> str:
        return f"{self.entry.file}: {self.entry.name!r}"

    @property
    def n_elements(self) -> int:
        return _n_elements(self.entry.dtype, self.nbytes)


def cut(entry: Entry, place: Place, piece_bytes: int = PIECE_BYTES, *, multiple: int = 1) -> Iterator[Piece]:
    """The pieces of a tensor in file order; of interleaved rows each is a whole number of heads (at least one).

    Those of a quantised tensor are whole blocks, and as many bytes as `piece_bytes` when they are float32. But for the
    last, each has a `multiple` of elements.
    """
    n, block_bytes = _block(entry.dtype)
    unit = entry.nbytes // place.n_heads if place.n_heads else block_bytes * max(1, multiple // n)
    piece_bytes = piece_bytes if n == 1 else piece_bytes * block_bytes // (4 * n)
    step = max(unit, piece_bytes // unit * unit)
    for start in range(0, entry.nbytes, step):
        yield Piece(entry, place, start, min(step, entry.nbytes - start))


def _block(dtype: str) -> tuple[int, int]:
    """How many elements are stored together, and in how many bytes."""
    if dtype in GGML_TYPES:
        return GGML_TYPES[dtype].size, GGML_TYPES[dtype].nbytes
    return 1, ITEM_BITS[dtype] // 8


def n_bytes(dtype: str, n_elements: int) -> int:
    """Bytes of so many elements, which are whole blocks, of a type."""
    n, block_bytes = _block(dtype)
    assert n_elements % n == 0, f"{n_elements} elements are no whole blocks of {dtype}"
    return n_elements // n * block_bytes


def _n_elements(dtype: str, n_bytes: int) -> int:
    n, block_bytes = _block(dtype)
    return n_bytes // block_bytes * n


class Files:
    """The weight files of a checkpoint, each opened once; positioned reads, so threads can share it."""

    def __init__(self, paths: Iterable[Path]):
        self._fds: dict[Path, int] = {}
        try:
            for path in paths:
                self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._fds[path], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as e:
            self.close()
            raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None

    def read(self, piece: Piece, out: Bytes) -> None:
        """Fill `out` with the bytes of a piece, as they are in the file."""
        fd, at, view = self._fds[piece.entry.file], piece.entry.offset + piece.start, out.data
        if hasattr(os, "posix_fadvise"):
            for ahead in range(at, at + piece.nbytes, _AHEAD):
                os.posix_fadvise(fd, ahead, _AHEAD, os.POSIX_FADV_WILLNEED)
        done = 0
        while done < piece.nbytes:
            try:
                n = os.preadv(fd, [view[done:]], at + done)
            except OSError as e:
                raise CheckpointError(f"{piece.entry.file} cannot be read: {e.strerror}") from None
            if n == 0:
                raise CheckpointError(f"{piece.entry.file} became shorter while it was read; get it again")
            done += n

    def forget(self, piece: Piece) -> None:
        """Tell the system that the pages of a piece need not stay in its cache."""
        if hasattr(os, "posix_fadvise"):
            at = piece.entry.offset + piece.start
            os.posix_fadvise(self._fds[piece.entry.file], at, piece.nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def half_split(raw: Bytes, place: Place, item_bytes: int) -> Bytes:
    """A copy of whole heads' rows, interleaved in the file, with the even rows of each head first."""
    head_rows = place.shape[0] // place.n_heads
    return np.ascontiguousarray(raw.reshape(-1, head_rows // 2, 2, place.shape[1] * item_bytes).swapaxes(1, 2)).reshape(
        -1
    )


def interleave(raw: Bytes, place: Place, item_bytes: int) -> Bytes:
    """The inverse of `half_split`: from canonical rows to those of Mistral's files."""
    head_rows = place.shape[0] // place.n_heads
    return np.ascontiguousarray(raw.reshape(-1, 2, head_rows // 2, place.shape[1] * item_bytes).swapaxes(1, 2)).reshape(
        -1
    )
