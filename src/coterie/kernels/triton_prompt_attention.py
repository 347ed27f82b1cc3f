"""Attention of several new rows a sequence in Triton: FlashAttention over pages (arXiv 2307.08691).

One kernel turns queries and keys and puts keys and values into the cache; the next attends. There a program takes
some neighbouring rows with all the queries of one key head, and the pages those may look at. Pages out of the window
of all of them are not read, and the rows with the most keys come first. Few rows behind a long text are too few
programs for a card, so their keys are split as in decoding. Example, R = 4 and 128 queries a program:
query 10 of tile 2 is head 10 % 4 = 2 of the key head and new row 2 · 32 + 10 // 4 = 66 of the sequence.

Shapes: B sequences, T rows, H query heads, G key/value heads, R = H/G, P head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.gpu_choice import n_processors
from coterie.kernels.pages import PAGE, Pages
from coterie.kernels.triton_batch import Batch
from coterie.kernels.triton_cache import arrived, merge, operand, partner, quantised, turned

__all__ = ["attend_prompts"]

_ROWS = 32  # of a program that turns them
_LEAST = 4  # pages of a stretch
_MOST = 64  # stretches


@triton.jit(do_not_specialize=["n_pages", "n_single"])
def _turn_kernel(
    qkv_ptr, cos_ptr, sin_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, start_ptr, first_ptr, count_ptr, tables_ptr,
    q_ptr, n_pages, n_single, G: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Heads of the grid: H of queries, G of keys, G of values."""
    head, tile, b = tl.program_id(0), tl.program_id(1), n_single + tl.program_id(2)
    count = tl.load(count_ptr + b)
    if tile * ROWS < count:
        at, d = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        is_row = at < count
        is_in = is_row[:, None] & (d < P)[None, :]
        row = tl.load(start_ptr + b).to(tl.int64) + at
        x_ptr = qkv_ptr + (row * (G * R + 2 * G) + head)[:, None] * P
        x = tl.load(x_ptr + d[None, :], is_in, 0.0)
        if head < G * R + G:
            other = tl.load(x_ptr + partner(d, P)[None, :], is_in, 0.0)
            cos = tl.load(cos_ptr + row[:, None] * P + d[None, :], is_in, 0.0)
            sin = tl.load(sin_ptr + row[:, None] * P + d[None, :], is_in, 0.0)
            x = turned(x, other, cos, sin)
        if head < G * R:
            tl.store(q_ptr + (row * (G * R) + head)[:, None] * P + d[None, :], x, is_in)
        else:
            place = tl.load(first_ptr + b) + at
            page = tl.load(tables_ptr + b.to(tl.int64) * n_pages + place // PAGE, is_row, 0).to(tl.int64)
            to = (page * PAGE + place % PAGE) * G + (head - G * R) % G
            if k_ptr.dtype.element_ty == tl.int8:
                number, scale = quantised(x)
                if head < G * R + G:
                    tl.store(k_scale_ptr + to, scale, is_row)
                    tl.store(k_ptr + to[:, None] * P + d[None, :], number.to(tl.int8), is_in)
                else:
                    tl.store(v_scale_ptr + to, scale, is_row)
                    tl.store(v_ptr + to[:, None] * P + d[None, :], number.to(tl.int8), is_in)
            else:
                if head < G * R + G:
                    tl.store(k_ptr + to[:, None] * P + d[None, :], x.to(k_ptr.dtype.element_ty), is_in)
                else:
                    tl.store(v_ptr + to[:, None] * P + d[None, :], x.to(v_ptr.dtype.element_ty), is_in)


@triton.jit
def _blocks(
    top, total, acc, q, place, start, stop, oldest, newest, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, g,
    scale, G: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Blocks of keys start..stop-1 added to what was attended to; unmasked, all rows see all of their keys."""
    kept: tl.constexpr = k_ptr.dtype.element_ty
    d, key = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    is_d = (d < P)[None, :]
    within = key[:, None] * (G * P) + d[None, :]
    for block in tl.range(start, stop):
        at = block * KEYS + key
        page = tl.load(table_ptr + block * KEYS // PAGE).to(tl.int64)
        to = (page * PAGE + block * KEYS % PAGE) * G + g
        if KEYS > PAGE:  # two pages: a table has room for both
            other = (tl.load(table_ptr + block * KEYS // PAGE + 1).to(tl.int64) * PAGE - PAGE) * G + g
            to = tl.where(key < PAGE, to, other)[:, None]
        is_key = (at >= oldest) & (at <= newest)
        is_in = is_d & is_key[:, None] if IS_MASKED else is_d & (key >= 0)[:, None]
        k = tl.load(k_ptr + to * P + within, is_in, 0.0)
        scores = tl.dot(q, tl.trans(operand(k, q.dtype)), input_precision="ieee")
        if kept == tl.int8:
            to_scale = (to if KEYS <= PAGE else tl.reshape(to, [KEYS])) + key * G
            scores *= tl.load(k_scale_ptr + to_scale, is_key, 0.0)[None, :]
        if IS_MASKED:
            is_seen = at[None, :] <= place[:, None]
            if WINDOW:
                is_seen = is_seen & (at[None, :] > place[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        old = tl.exp2(top - higher)
        total, top = total * old + tl.sum(weights, 1), higher
        v = tl.load(v_ptr + to * P + within, is_in, 0.0)
        if kept == tl.int8:
            weights *= tl.load(v_scale_ptr + to_scale, is_key, 0.0)[None, :]
        acc = tl.dot(weights.to(q.dtype), operand(v, q.dtype), acc * old[:, None], input_precision="ieee")
    return top, total, acc


@triton.jit(do_not_specialize=["n_pages", "n_single", "n_splits"])
def _prompt_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, start_ptr, first_ptr, count_ptr, tables_ptr, part_ptr, weight_ptr,
    arrivals_ptr, out_ptr, n_pages, n_single, n_splits, scale,
    G: tl.constexpr, R: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, LEAST: tl.constexpr, IS_SPLIT: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = QUERIES // R
    b, g = n_single + tl.program_id(0) // G, tl.program_id(0) % G
    first, count = tl.load(first_ptr + b), tl.load(count_ptr + b)
    tile = tl.cdiv(count, ROWS) - 1 - tl.program_id(1)
    # the keys that some row sees lie in blocks begin..end-1, those that all rows see in blocks whole..end_whole-1
    oldest_row, newest = first + tile * ROWS, first + tl.minimum(tile * ROWS + ROWS, count) - 1
    oldest = tl.maximum(oldest_row - WINDOW + 1, 0) if WINDOW else 0
    begin, end = oldest // KEYS, newest // KEYS + 1
    whole = tl.minimum(tl.cdiv(tl.maximum(newest - WINDOW + 1, 0), KEYS), end) if WINDOW else 0
    end_whole = tl.maximum((oldest_row + 1) // KEYS, whole)
    n_used = 1
    if IS_SPLIT:
        length = tl.maximum(tl.cdiv(end - begin, n_splits), LEAST)
        n_used = tl.cdiv(end - begin, length)
        begin += tl.program_id(2) * length
        end = tl.minimum(begin + length, end)
        whole = tl.minimum(tl.maximum(whole, begin), end)
        end_whole = tl.minimum(tl.maximum(end_whole, whole), end)
    if (tile >= 0) & (tl.program_id(2) < n_used):
        query, d = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
        at = tile * ROWS + query // R
        is_row = (at < count) & (query < ROWS * R)
        is_out = is_row[:, None] & (d < P)[None, :]
        at = tl.minimum(at, count - 1)
        row = tl.load(start_ptr + b).to(tl.int64) + at
        q_at = (row * G + g) * R + query % R
        q = tl.load(q_ptr + q_at[:, None] * P + d[None, :], is_out, 0.0)
        top = tl.full([QUERIES], -1e30, tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([QUERIES, WIDTH], tl.float32)
        table_ptr = tables_ptr + b.to(tl.int64) * n_pages
        place = first + at
        if WINDOW:
            top, total, acc = _blocks(
                top, total, acc, q, place, begin, whole, oldest, newest, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
                table_ptr, g, scale, G, P, WINDOW, KEYS, WIDTH, PAGE, True,
            )  # fmt: skip
        top, total, acc = _blocks(
            top, total, acc, q, place, whole, end_whole, oldest, newest, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            table_ptr, g, scale, G, P, WINDOW, KEYS, WIDTH, PAGE, False,
        )  # fmt: skip
        top, total, acc = _blocks(
            top, total, acc, q, place, end_whole, end, oldest, newest, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            table_ptr, g, scale, G, P, WINDOW, KEYS, WIDTH, PAGE, True,
        )  # fmt: skip
        if n_used == 1:
            out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + q_at[:, None] * P + d[None, :], out, is_out)
        else:
            pair = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
            split = tl.program_id(2)
            if arrived(part_ptr, weight_ptr, arrivals_ptr, pair, split, n_splits, n_used, top, total, acc, QUERIES, P):
                merge(part_ptr, weight_ptr, out_ptr, pair * n_splits, n_used, q_at, is_row, QUERIES, P, WIDTH)


def attend_prompts(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], pages: Pages, layer: int, batch: Batch, window: int | None, out: Tensor
) -> None:
    """The sequences of a batch behind its first `n_single`: keys and values are kept and rows of `out` written."""
    (T, N, P), G, B = qkv.shape, pages.k[layer].shape[2], len(batch.start_B) - batch.n_single
    R, n_pages = (N - 2 * G) // G, batch.tables.shape[1]
    width = max(16, triton.next_power_of_2(P))
    q_THP = torch.empty((T, G * R, P), dtype=qkv.dtype, device=qkv.device)
    k_scales, v_scales = (pages.k_scales[layer], pages.v_scales[layer]) if pages.has_scales else (rotary[0], rotary[0])
    stores = (pages.k[layer], pages.v[layer], k_scales, v_scales)
    where = (batch.start_B, batch.first_B, batch.count_B, batch.tables)
    _turn_kernel[(N, triton.cdiv(batch.longest, _ROWS), B)](
        qkv, *rotary, *stores, *where, q_THP, n_pages, batch.n_single,
        G=G, R=R, P=P, ROWS=_ROWS, WIDTH=width, PAGE=PAGE, num_warps=4,
    )  # fmt: skip
    shape = _shape(qkv.dtype, pages.dtype, batch.longest * R, R, width)
    queries = shape["QUERIES"]
    n_tiles = triton.cdiv(batch.longest, queries // R)
    n_splits = n_splits_of(B * G * n_tiles, n_pages, n_processors(qkv.device) * (1 if queries > 32 else 4))
    n_parts = B * G * n_tiles * n_splits * queries if n_splits > 1 else 0
    part = torch.empty((n_parts, P), dtype=torch.float32, device=qkv.device)
    weight = torch.empty((n_parts, 2), dtype=torch.float32, device=qkv.device)
    _prompt_kernel[(B * G, n_tiles, n_splits)](
        q_THP, *stores, *where, part, weight, batch.arrivals(B * G * n_tiles), out, n_pages, batch.n_single, n_splits,
        P**-0.5 * 1.4426950408889634, G=G, R=R, P=P, WINDOW=window or 0, WIDTH=width, PAGE=PAGE,
        LEAST=triton.cdiv(_LEAST * PAGE, shape["KEYS"]), IS_SPLIT=n_splits > 1, **shape,
    )  # fmt: skip


def n_splits_of(n_programs: int, n_pages: int, wanted: int) -> int:
    """Stretches of keys for so many programs: few, unless those leave most of the card idle and the text is long."""
    return max(1, min(wanted // n_programs, n_pages // (2 * _LEAST), _MOST))


def _shape(dtype: torch.dtype, kept: torch.dtype, n_queries: int, R: int, width: int) -> dict[str, int]:
    """The tile: float32 products are sums on ordinary units, whose operands fill registers."""
    least = max(16, triton.next_power_of_2(R))
    if dtype == torch.float32:
        return {"QUERIES": max(least, 16), "KEYS": 16, "num_warps": 4, "num_stages": 2}
    if n_queries <= 32:
        return {"QUERIES": max(least, triton.next_power_of_2(n_queries)), "KEYS": 64, "num_warps": 4, "num_stages": 3}
    if width > 128 or kept == torch.int8:
        return {"QUERIES": max(least, 128), "KEYS": 64, "num_warps": 8, "num_stages": 2 if width > 128 else 3}
    return {"QUERIES": max(least, 128), "KEYS": 128, "num_warps": 8, "num_stages": 3}
