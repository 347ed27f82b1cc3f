"""Sparse blocks of many rows in Triton: two products of rows grouped by expert; `sparse_ffn` of reference is the twin.

Rows are read through their pairs, so nothing is copied into order, and SwiGLU is applied before the first product is
written. A program takes tile after tile; each finds its expert in the offsets, which stay on the card. Tiles of one
expert that share weights follow one another, so that those are read from memory once.
Shapes: T tokens, K slots, N pairs, D model width, F expert width, E experts.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from coterie.kernels import tiles, triton_rows
from coterie.kernels.tiles import Shape, Tile
from coterie.kernels.triton_sort import Sorted, combine, sort_pairs

__all__ = ["down_product", "gate_up_product", "many"]


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


@triton.jit(do_not_specialize=["N"])
def _grouped_kernel(
    x_ptr, pair_ptr, offsets_ptr, weight, out_ptr, N, SLOTS: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr, SWAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """x [., WIDTH] · weight [E, (2) COLUMNS, WIDTH]; SLOTS 0: row n of x is that of place n.

    With TMA the weights, and x where SLOTS is 0, are descriptors; what lies beyond a side of theirs is read as 0.
    """
    halves: tl.constexpr = 2 if GATED else 1
    wide: tl.constexpr = BLOCK_N // halves
    n_parts: tl.constexpr = (COLUMNS + wide - 1) // wide * SPLIT
    length: tl.constexpr = (WIDTH + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT) * BLOCK_K
    is_even: tl.constexpr = WIDTH % (BLOCK_K * SPLIT) == 0
    end_E = ends_of(offsets_ptr, n_parts, E, EXPERTS, BLOCK_M)
    for tile in range(tl.program_id(0), tl.max(end_E, 0), tl.num_programs(0)):
        e, top, last, part = place_of(tile, end_E, offsets_ptr, n_parts, BLOCK_M, GROUP)
        row, k = top + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
        column, start = part // SPLIT * wide, part % SPLIT * length
        stop = tl.minimum(start + length, WIDTH)
        if SLOTS or not TMA:
            read = tl.minimum(row, last - 1)
            if SLOTS:
                read = tl.load(pair_ptr + read) // SLOTS
            x_at = read.to(tl.int64)[:, None] * WIDTH + k[None, :]
        if not TMA:
            n = tl.arange(0, BLOCK_N)
            n = tl.minimum(column + n % wide, COLUMNS - 1) + n // wide * COLUMNS
            weight_e = weight + e.to(tl.int64) * (halves * COLUMNS * WIDTH)
            w_at = n[:, None] * WIDTH + k[None, :]
        acc = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
        for at in range(start, stop, BLOCK_K):
            if TMA and not SLOTS:
                x = x_ptr.load([top, at])
            elif is_even:
                x = tl.load(x_ptr + at + x_at)
            else:
                x = tl.load(x_ptr + at + x_at, (at + k < stop)[None, :], 0.0)
            if TMA:
                w = tl.reshape(weight.load([e * halves, column, at]), [BLOCK_N, BLOCK_K])
            elif is_even:
                w = tl.load(weight_e + at + w_at)
            else:
                w = tl.load(weight_e + at + w_at, (at + k < stop)[None, :], 0.0)
            if SWAP:
                acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
            else:
                acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        if SWAP:
            acc = tl.trans(acc)
        out = out_ptr + (part % SPLIT) * tl.cast(N, tl.int64) * COLUMNS
        finish(acc, out, row, last, column, COLUMNS, GATED, wide)


def many(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Any, down: Any) -> Tensor:
    """See `reference.sparse_ffn`; experts [E, 2F, D] with the gate rows first and [E, D, F], or packed stacks."""
    (T, K), E = ids_TK.shape, len(gate_up)
    if T == 0:
        return torch.empty_like(x_TD)
    shape, rows = Shape(x_TD.shape[1], gate_up.shape[1] // 2, E), T * K / E
    sorted_ = sort_pairs(ids_TK.contiguous(), E)
    first = tiles.tile("gate_up", shape, x_TD.dtype, rows, x_TD.device)
    second = tiles.tile("down", shape, x_TD.dtype, rows, x_TD.device)
    h_NF = gate_up_product(x_TD.contiguous(), sorted_, K, gate_up, first)
    return combine(down_product(h_NF, sorted_, down, second), sorted_, weights_TK.contiguous(), x_TD.dtype)


def gate_up_product(x_TD: Tensor, sorted_: Sorted, n_slots: int, gate_up_E2FD: Tensor, tile: Tile) -> Tensor:
    """silu(gate) · up of each pair, by place: [N, F]; places from the last offset on are not written."""
    (E, F2, D), N = gate_up_E2FD.shape, len(sorted_.pair_N)
    if tile.by == "torch" and _has_torch_product(x_TD, gate_up_E2FD):
        rows_ND = x_TD.index_select(0, sorted_.pair_N // n_slots)
        return triton_rows.swiglu(_torch_product(rows_ND, gate_up_E2FD, sorted_))
    h_NF = torch.empty((N, F2 // 2), dtype=x_TD.dtype, device=x_TD.device)
    _launch(x_TD, sorted_, gate_up_E2FD.view(E * 2, F2 // 2, D), h_NF, tile, n_slots, is_gated=True)
    return h_NF


def down_product(h_NF: Tensor, sorted_: Sorted, down_EDF: Tensor, tile: Tile) -> Tensor:
    """Each row times its expert's `down`: [parts, N, D], to be added, float32 where there are several parts."""
    if tile.by == "torch" and _has_torch_product(h_NF, down_EDF):
        return _torch_product(h_NF, down_EDF, sorted_)[None]
    shape = (tile.parts, len(h_NF), down_EDF.shape[1])
    out = torch.empty(shape, dtype=h_NF.dtype if tile.parts == 1 else torch.float32, device=h_NF.device)
    _launch(h_NF, sorted_, down_EDF, out, tile, 0, is_gated=False)
    return out


def _launch(x: Tensor, sorted_: Sorted, weight: Tensor, out: Tensor, tile: Tile, n_slots: int, is_gated: bool) -> None:
    """weight [E (· 2), columns, width]."""
    assert x.is_contiguous() and weight.is_contiguous() and x.dtype == weight.dtype and x.shape[1] == weight.shape[2]
    assert tile.parts == 1 or not is_gated
    N, E, (_, columns, width) = len(sorted_.pair_N), len(sorted_.offsets) - 1, weight.shape
    card, halves = tiles.card_of(x.device), 1 + is_gated
    is_tma = tile.tma and width * x.itemsize % 16 == 0 and x.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    n_tiles = (min(E, N) + N // tile.rows) * triton.cdiv(columns, tile.columns // halves) * tile.parts
    weight_in: Any = weight
    x_in: Any = x
    if is_tma:
        weight_in = TensorDescriptor.from_tensor(weight, [halves, tile.columns // halves, tile.depth])
        x_in = x if n_slots else TensorDescriptor.from_tensor(x, [tile.rows, tile.depth])
    n_programs = tile.per_sm * card.processors
    _grouped_kernel[(min(n_tiles, n_programs) if n_programs else n_tiles,)](
        x_in, sorted_.pair_N, sorted_.offsets, weight_in, out, N, n_slots, E, triton.next_power_of_2(E), width, columns,
        is_gated, tile.rows, tile.columns, tile.depth, tile.group, tile.parts, tile.swap, is_tma,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _has_torch_product(x: Tensor, weight: Tensor) -> bool:
    sides = (*x.shape[1:], *weight.shape[1:])
    return x.dtype == torch.bfloat16 and all(n % 8 == 0 for n in sides) and hasattr(torch, "_grouped_mm")


def _torch_product(x_NK: Tensor, weight_EMK: Tensor, sorted_: Sorted) -> Tensor:
    """Rows beyond the last offset are whatever was there."""
    product: Tensor = torch._grouped_mm(x_NK, weight_EMK.transpose(1, 2), offs=sorted_.offsets[1:])
    return product
