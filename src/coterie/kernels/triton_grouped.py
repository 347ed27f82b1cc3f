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
from coterie.kernels.packed import Packed
from coterie.kernels.tiles import Kind, Shape, Tile
from coterie.kernels.triton_grouped_packed import packed_product
from coterie.kernels.triton_packed import plain
from coterie.kernels.triton_sort import Sorted, combine, sort_pairs
from coterie.kernels.triton_tiles import ends_of, finish, place_of

__all__ = ["down_product", "gate_up_product", "many"]

_PLAIN_BYTES = 1 << 29  # of packed experts that are plain at a time


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["offsets_ptr"])
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


def many(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor | Packed, down: Tensor | Packed) -> Tensor:
    """See `reference.sparse_ffn`; experts [E, 2F, D] with the gate rows first and [E, D, F], plain or packed."""
    (T, K), (E, F2, D) = ids_TK.shape, gate_up.shape
    if T == 0:
        return torch.empty_like(x_TD)
    shape, rows = Shape(D, F2 // 2, E), T * K / E
    sorted_ = sort_pairs(ids_TK.contiguous(), E)
    first = _tile("gate_up", gate_up, shape, x_TD, rows)
    second = _tile("down", down, shape, x_TD, rows)
    h_NF = gate_up_product(x_TD.contiguous(), sorted_, K, gate_up, first)
    return combine(down_product(h_NF, sorted_, down, second), sorted_, weights_TK.contiguous(), x_TD.dtype)


def _tile(kind: Kind, weight: Tensor | Packed, shape: Shape, x: Tensor, rows: float) -> Tile:
    if isinstance(weight, Packed) and rows <= tiles.MOST_PACKED:
        return tiles.packed(kind, shape, x.dtype, rows, tiles.card_of(x.device))
    return tiles.tile(kind, shape, x.dtype, rows, x.device)


def gate_up_product(x_TD: Tensor, sorted_: Sorted, n_slots: int, gate_up: Tensor | Packed, tile: Tile) -> Tensor:
    """silu(gate) · up of each pair, by place: [N, F]; places from the last offset on are not written."""
    N, F = len(sorted_.pair_N), gate_up.shape[1] // 2
    if tile.by == "torch" and isinstance(gate_up, Tensor) and _has_torch_product(x_TD, gate_up):
        rows_ND = x_TD.index_select(0, sorted_.pair_N // n_slots)
        return triton_rows.swiglu(_torch_product(rows_ND, gate_up, sorted_))
    h_NF = torch.empty((N, F), dtype=x_TD.dtype, device=x_TD.device)
    _product(x_TD, sorted_, gate_up, h_NF, tile, n_slots)
    return h_NF


def down_product(h_NF: Tensor, sorted_: Sorted, down: Tensor | Packed, tile: Tile) -> Tensor:
    """Each row times its expert's `down`: [parts, N, D], to be added, float32 where there are several parts."""
    if tile.by == "torch" and isinstance(down, Tensor) and _has_torch_product(h_NF, down):
        return _torch_product(h_NF, down, sorted_)[None]
    shape = (tile.parts, len(h_NF), down.shape[1])
    out = torch.empty(shape, dtype=h_NF.dtype if tile.parts == 1 else torch.float32, device=h_NF.device)
    _product(h_NF, sorted_, down, out, tile, 0)
    return out


def _product(x: Tensor, sorted_: Sorted, weight: Tensor | Packed, out: Tensor, tile: Tile, n_slots: int) -> None:
    """Packed weights are made plain in the product if few rows want them, else before it, some experts at a time."""
    offsets = sorted_.offsets
    if isinstance(weight, Tensor):
        _launch(x, sorted_.pair_N, offsets, weight, out, tile, n_slots)
    elif len(sorted_.pair_N) <= tiles.MOST_PACKED * weight.shape[0]:
        packed_product(x, sorted_, weight, out, tile, n_slots)
    else:
        E, M, K = weight.shape
        step = max(1, min(E, _PLAIN_BYTES // (M * K * x.itemsize)))
        experts = torch.empty((step, M, K), dtype=x.dtype, device=x.device)
        for e in range(0, E, step):
            n = min(step, E - e)
            for i in range(n):
                plain(weight, e + i, 0, experts[i])
            _launch(x, sorted_.pair_N, offsets[e : e + n + 1], experts[:n], out, tile, n_slots)


def _launch(x: Tensor, pair_N: Tensor, offsets: Tensor, weight: Tensor, out: Tensor, tile: Tile, n_slots: int) -> None:
    """weight [E, (2) columns, width]; the rows of its first expert begin at offsets[0]."""
    assert x.is_contiguous() and weight.is_contiguous() and x.dtype == weight.dtype and x.shape[1] == weight.shape[2]
    assert tile.parts == 1 or not n_slots
    halves, N = 1 + bool(n_slots), len(pair_N)
    (E, rows, width), card = weight.shape, tiles.card_of(x.device)
    columns = rows // halves
    is_tma = tile.tma and width * x.itemsize % 16 == 0 and x.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    n_tiles = (min(E, N) + N // tile.rows) * triton.cdiv(columns, tile.columns // halves) * tile.parts
    weight_in: Any = weight
    x_in: Any = x
    if is_tma:
        by_halves = weight.view(E * halves, columns, width)
        weight_in = TensorDescriptor.from_tensor(by_halves, [halves, tile.columns // halves, tile.depth])
        x_in = x if n_slots else TensorDescriptor.from_tensor(x, [tile.rows, tile.depth])
    n_programs = tile.per_sm * card.processors
    _grouped_kernel[(min(n_tiles, n_programs) if n_programs else n_tiles,)](
        x_in, pair_N, offsets, weight_in, out, N, n_slots, E, triton.next_power_of_2(E), width, columns,
        bool(n_slots), tile.rows, tile.columns, tile.depth, tile.group, tile.parts, tile.swap, is_tma,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _has_torch_product(x: Tensor, weight: Tensor) -> bool:
    sides = (*x.shape[1:], *weight.shape[1:])
    return x.dtype == torch.bfloat16 and all(n % 8 == 0 for n in sides) and hasattr(torch, "_grouped_mm")


def _torch_product(x_NK: Tensor, weight_EMK: Tensor, sorted_: Sorted) -> Tensor:
    """Rows beyond the last offset are whatever was there."""
    product: Tensor = torch._grouped_mm(x_NK, weight_EMK.transpose(1, 2), offs=sorted_.offsets[1:])
    return product
