"""Tiles of grouped products in Triton: which one is next, and how it is written; `tiles.py` says how large they are."""

import triton
import triton.language as tl

__all__ = ["ends_of", "finish", "place_of"]


@triton.jit
def ends_of(offsets_ptr, n_parts, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of each expert, how many tiles it and those before it have."""
    e = tl.arange(0, EXPERTS)
    count = tl.load(offsets_ptr + e + 1, e < E, 0) - tl.load(offsets_ptr + e, e < E, 0)
    return tl.cumsum((count + BLOCK_M - 1) // BLOCK_M * n_parts, 0)


@triton.jit
def place_of(tile, end_E, offsets_ptr, n_parts, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """Tile -> expert, its first row, the end of the expert's rows, which part of the columns.

    Groups of about GROUP tiles of rows, of equal height, take their weights together: rows first, then the next part.
    """
    is_before = end_E <= tile
    e = tl.sum(is_before.to(tl.int32), 0)
    at = tile - tl.max(tl.where(is_before, end_E, 0), 0)
    first, last = tl.load(offsets_ptr + e), tl.load(offsets_ptr + e + 1)
    n_high = (last - first + BLOCK_M - 1) // BLOCK_M
    n_groups = (n_high + GROUP - 1) // GROUP
    height = (n_high + n_groups - 1) // n_groups
    group = at // (height * n_parts)
    at -= group * height * n_parts
    height_here = tl.minimum(n_high - group * height, height)
    return e, first + (group * height + at % height_here) * BLOCK_M, last, at // height_here


@triton.jit
def finish(acc, out_ptr, row, last, column, COLUMNS: tl.constexpr, GATED: tl.constexpr, WIDE: tl.constexpr):
    """Writes a tile [rows, columns]; where gated, its columns are as many gates, then ups: silu(gate) · up."""
    if GATED:
        parts = tl.reshape(acc, [acc.shape[0], 2, WIDE])
        gate, up = tl.split(tl.permute(parts, [0, 2, 1]))
        acc = gate * tl.sigmoid(gate) * up
    c = column + tl.arange(0, WIDE)
    out = out_ptr + row.to(tl.int64)[:, None] * COLUMNS + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), (row < last)[:, None] & (c < COLUMNS)[None, :])
