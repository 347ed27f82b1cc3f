"""Products of rows grouped by expert whose weights are packed: they become plain in registers, when multiplied.

A span of 256 k is eight products of 32: value p of each of its 32 elements, with what the rows have at those k. So an
element is read once, its scale too, and no value changes its place. So that each weight is made plain once, the rows of
an expert should fit one tile; see `triton_grouped` for the rest, and `packed.py` for spans, values and elements.
Shapes: N pairs, D model width, F expert width, E experts.
"""

import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels import tiles
from coterie.kernels.packed import Packed
from coterie.kernels.tiles import Tile
from coterie.kernels.triton_packed import arguments, factors, values
from coterie.kernels.triton_sort import Sorted
from coterie.kernels.triton_tiles import ends_of, finish, place_of

__all__ = ["add_span", "packed_product"]


@triton.jit
def _of_elements(unit):
    """[rows, 8] -> [rows, 32], each number four times."""
    return tl.reshape(tl.broadcast_to(unit[:, :, None], [unit.shape[0], 8, 4]), [unit.shape[0], 32])


@triton.jit
def add_span(
    acc, x_ptr, x_row, low_ptr, high_ptr, scale_ptr, sub_ptr, w_row, span, n_spans: tl.constexpr, WIDTH: tl.constexpr,
    SWAP: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """acc + the products of one span; fp8 is not scaled here: its scale is a row's.

    A value comes as 256 + v. Where weights are rounded anyway, the 256 goes with the offset, in one operation.
    """
    ZERO: tl.constexpr = 1 << (BITS - 1) if SCALES == "f16" or SCALES == "super" else 0
    IS_EXACT: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    TAKEN: tl.constexpr = ZERO if IS_EXACT else -256
    at = tl.arange(0, 32)[None, :]
    for p in tl.static_range(8):
        k = span * 256 + (at + p * 32 if SCALES == "fp8" else at // 4 * 32 + 4 * p + at % 4)
        x = tl.load(x_ptr + x_row * WIDTH + k, k < WIDTH, 0.0)
        if SCALES == "fp8":
            w = tl.load(low_ptr + w_row * WIDTH + k, k < WIDTH, 0.0).to(tl.float32)
        else:
            if BITS == 8:
                if p % 4 == 0:
                    low = tl.load(low_ptr + w_row * (n_spans * 64) + span * 64 + at // 4 * 8 + p + at % 4)
                w = values(low, 0, p % 4, BITS, TAKEN)
            else:
                if p == 0:
                    low = tl.load(low_ptr + w_row * (n_spans * 32) + span * 32 + at)
                    high = 0
                    if BITS != 4 and BITS != 2:
                        high = tl.load(high_ptr + w_row * (n_spans * 32) + span * 32 + at)
                w = values(low, high, p, BITS, TAKEN)
            if p == 0 or (p == 4 and UNIT == 16):
                unit = span * (256 // UNIT) + tl.arange(0, 8)[None, :] * (32 // UNIT) + p // 4 * (32 // UNIT - 1)
                factor, offset = factors(scale_ptr, sub_ptr, w_row, n_spans, unit, UNIT, GROUP, SCALES)
                if not IS_EXACT:
                    offset -= (256 + ZERO) * factor
                factor, offset = _of_elements(factor), _of_elements(offset)
            w = w * factor + offset
        w = w.to(x.dtype)
        if SWAP:
            acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        else:
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["N"])
def _packed_kernel(
    x_ptr, pair_ptr, offsets_ptr, low_ptr, high_ptr, scale_ptr, sub_ptr, out_ptr, N, SLOTS: tl.constexpr,
    E: tl.constexpr, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr, SWAP: tl.constexpr,
    BITS: tl.constexpr, UNIT: tl.constexpr, SCALE_GROUP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """As `_grouped_kernel`, a span of the inner product at a time."""
    halves: tl.constexpr = 2 if GATED else 1
    wide: tl.constexpr = BLOCK_N // halves
    n_parts: tl.constexpr = (COLUMNS + wide - 1) // wide * SPLIT
    n_spans: tl.constexpr = (WIDTH + 255) // 256
    length: tl.constexpr = (n_spans + SPLIT - 1) // SPLIT
    end_E = ends_of(offsets_ptr, n_parts, E, EXPERTS, BLOCK_M)
    for tile in range(tl.program_id(0), tl.max(end_E, 0), tl.num_programs(0)):
        e, top, last, part = place_of(tile, end_E, offsets_ptr, n_parts, BLOCK_M, GROUP)
        row = top + tl.arange(0, BLOCK_M)
        column, start = part // SPLIT * wide, part % SPLIT * length
        stop = tl.minimum(start + length, n_spans)
        read = tl.minimum(row, last - 1)
        if SLOTS:
            read = tl.load(pair_ptr + read) // SLOTS
        n = tl.arange(0, BLOCK_N)
        n = tl.minimum(column + n % wide, COLUMNS - 1) + n // wide * COLUMNS
        w_row = (e.to(tl.int64) * (halves * COLUMNS) + n)[:, None]
        acc = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
        for span in range(start, stop):
            acc = add_span(
                acc, x_ptr, read.to(tl.int64)[:, None], low_ptr, high_ptr, scale_ptr, sub_ptr, w_row, span, n_spans,
                WIDTH, SWAP, BITS, UNIT, SCALE_GROUP, SCALES,
            )  # fmt: skip
        if SCALES == "fp8":
            scale = tl.load(scale_ptr + w_row)
            acc *= scale if SWAP else tl.trans(scale)
        if SWAP:
            acc = tl.trans(acc)
        out = out_ptr + (part % SPLIT) * tl.cast(N, tl.int64) * COLUMNS
        finish(acc, out, row, last, column, COLUMNS, GATED, wide)


def packed_product(x: Tensor, sorted_: Sorted, packed: Packed, out: Tensor, tile: Tile, n_slots: int) -> None:
    """Into out [N, F] from x [T, D]; where n_slots is 0, into [parts, N, D] from rows by place, [N, F]."""
    (E, n_rows, width), halves = packed.shape, 1 + bool(n_slots)
    columns, N, given = n_rows // halves, len(sorted_.pair_N), arguments(packed)
    given["SCALE_GROUP"] = given.pop("GROUP")
    assert x.is_contiguous() and x.shape[1] == width and (tile.parts == 1 or not n_slots)
    n_tiles = (min(E, N) + N // tile.rows) * triton.cdiv(columns, tile.columns // halves) * tile.parts
    n_programs = tile.per_sm * tiles.card_of(x.device).processors
    _packed_kernel[(min(n_tiles, n_programs) if n_programs else n_tiles,)](
        x_ptr=x, pair_ptr=sorted_.pair_N, offsets_ptr=sorted_.offsets, out_ptr=out, N=N, SLOTS=n_slots, E=E,
        EXPERTS=triton.next_power_of_2(E), WIDTH=width, COLUMNS=columns, GATED=bool(n_slots), BLOCK_M=tile.rows,
        BLOCK_N=tile.columns, GROUP=tile.group, SPLIT=tile.parts, SWAP=tile.swap, **given,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
