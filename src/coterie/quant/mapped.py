"""Matrices that stay as a GGUF file has them, mapped into memory: for models that do not fit it interleaved.

The native kernels put a piece of 16 rows at a time into their own order while they multiply; what is not asked for is
never read. Shapes: N outputs, K inputs, F expert width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.kernels import cpu
from coterie.quant.formats import FORMATS, Format
from coterie.quant.ggml_blocks import dequantise
from coterie.quant.tensor import PackedTensor, alternate_halves

__all__ = ["MappedMatrix", "new_memory"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class MappedMatrix:
    """Rows of one GGUF type. With `up`, gate_up of an expert: [2F, K], gate rows at `rows`, 16 of each alternating.

    `head_rows` > 0: the file interleaves the rows of each head of so many; the matrix has them half-split.
    """

    kind: str  # "Q4_0"
    shape: tuple[int, int]
    rows: Bytes
    up: Bytes | None = None
    head_rows: int = 0

    @property
    def format(self) -> Format:
        return FORMATS[self.kind.lower()]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + (0 if self.up is None else self.up.nbytes)

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def native(self) -> Any:
        """The matrix as the native kernels see it."""
        N, K = self.shape
        up = 0 if self.up is None else self.up.ctypes.data
        half = 0 if self.up is None else N // 2
        return cpu.ggml_matrix(self.format, N, K, self.rows.ctypes.data, half=half, up=up, head_rows=self.head_rows)

    def interleaved(self) -> tuple[PackedTensor, int]:
        """A copy in the kernels' layout, and how many of its scales are NaN or infinite."""
        out = new_memory(self.format.matrix_bytes(*self.shape))
        n_bad = cpu.repack(self.native(), out)
        return PackedTensor(self.format, self.shape, out), n_bad

    def dequantise(self) -> Tensor:
        """The weights, float32 [N, K]."""
        w_NK = torch.from_numpy(dequantise(self.kind, self.rows))
        if self.up is not None:
            return alternate_halves(torch.cat((w_NK, torch.from_numpy(dequantise(self.kind, self.up)))))
        if self.head_rows:
            half = self.head_rows // 2
            return w_NK.view(-1, half, 2, self.shape[1]).transpose(1, 2).reshape(self.shape)
        return w_NK


def new_memory(n_bytes: int) -> Tensor:
    """Uninitialised uint8 [n_bytes], on large pages where the system has them."""
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory would get no large pages
    memory = mmap.mmap(-1, max(1, n_bytes), flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:n_bytes]
