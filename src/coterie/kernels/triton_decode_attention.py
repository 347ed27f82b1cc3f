"""Attention of one new row a sequence in one Triton kernel: flash-decoding (split keys, arXiv 2311.01282).

A program takes a sequence, a key head with all its queries, and one stretch of the sequence's pages. The first stretch
also turns and keeps the new key and value, and begins with them, so nobody waits for what another program writes. How
many stretches there can be follows from the batch alone; how long they are, from the lengths on the card. The program
that comes last merges them, in order: no second launch.

Shapes: B sequences, H query heads, G key/value heads, R = H/G, P head width, T rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.gpu_choice import n_processors
from coterie.kernels.pages import PAGE, Pages
from coterie.kernels.triton_batch import Batch
from coterie.kernels.triton_cache import arrived, merge, operand, partner, quantised, turned

__all__ = ["attend_singles", "n_splits_of"]

_LEAST = 2  # pages of a stretch
_MOST = 64  # stretches


@triton.jit(do_not_specialize=["n_pages", "n_splits"])
def _decode_kernel(
    qkv_ptr, cos_ptr, sin_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, start_ptr, first_ptr, count_ptr, tables_ptr,
    part_ptr, weight_ptr, arrivals_ptr, out_ptr, n_pages, n_splits, scale,
    G: tl.constexpr, R: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    b, g, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kept: tl.constexpr = k_ptr.dtype.element_ty
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    row, p, count = tl.load(start_ptr + b).to(tl.int64), tl.load(first_ptr + b), tl.load(count_ptr + b)
    head, d, key = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    is_d = d < P
    is_q = (head < R)[:, None] & is_d[None, :]
    out_at = (row * G + g) * R * P
    oldest = tl.maximum(p - WINDOW + 1, 0) if WINDOW else 0
    begin, n_blocks = oldest // KEYS, tl.cdiv(p, KEYS) - oldest // KEYS
    length = tl.maximum(tl.cdiv(n_blocks, n_splits), LEAST)
    n_used = tl.maximum(tl.cdiv(n_blocks, length), 1)
    if count == 0:
        n_used = 1
        if split == 0:
            tl.store(out_ptr + out_at + head[:, None] * P + d[None, :], tl.zeros([ROWS, WIDTH], dtype), is_q)
    if (split < n_used) & (count > 0):
        in_row, other = row * (G * R + 2 * G) * P, partner(d, P)
        cos, sin = tl.load(cos_ptr + row * P + d, is_d, 0.0), tl.load(sin_ptr + row * P + d, is_d, 0.0)
        q_at = in_row + (g * R + head)[:, None] * P
        q = tl.load(qkv_ptr + q_at + d[None, :], is_q, 0.0)
        q = turned(q, tl.load(qkv_ptr + q_at + other[None, :], is_q, 0.0), cos[None, :], sin[None, :])
        top = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        table_ptr = tables_ptr + b.to(tl.int64) * n_pages
        if split == 0:
            k_at, v_at = in_row + (G * R + g) * P, in_row + (G * R + G + g) * P
            k = tl.load(qkv_ptr + k_at + d, is_d, 0.0)[None, :]
            k = turned(k, tl.load(qkv_ptr + k_at + other, is_d, 0.0)[None, :], cos[None, :], sin[None, :])
            v = tl.load(qkv_ptr + v_at + d, is_d, 0.0)[None, :]
            to = (tl.load(table_ptr + p // PAGE).to(tl.int64) * PAGE + p % PAGE) * G + g
            if kept == tl.int8:
                k, k_scale = quantised(k)
                v, v_scale = quantised(v)
                one = tl.arange(0, 1)
                tl.store(k_scale_ptr + to + one, k_scale)
                tl.store(v_scale_ptr + to + one, v_scale)
                tl.store(k_ptr + to * P + d[None, :], k.to(tl.int8), is_d[None, :])
                tl.store(v_ptr + to * P + d[None, :], v.to(tl.int8), is_d[None, :])
                k, v = k * k_scale[:, None], v * v_scale[:, None]
            else:
                k, v = k.to(kept), v.to(kept)
                tl.store(k_ptr + to * P + d[None, :], k, is_d[None, :])
                tl.store(v_ptr + to * P + d[None, :], v, is_d[None, :])
                k, v = k.to(tl.float32), v.to(tl.float32)
            top = tl.sum(q.to(tl.float32) * k, 1) * scale
            total = tl.full([ROWS], 1.0, tl.float32)
            acc = acc + v
        within = key[:, None] * (G * P) + d[None, :]
        stop = tl.minimum((split + 1) * length, n_blocks)
        for block in tl.range(begin + split * length, begin + stop):
            at = block * KEYS + key
            page = tl.load(table_ptr + block * KEYS // PAGE).to(tl.int64)
            to = (page * PAGE + block * KEYS % PAGE) * G + g
            is_seen = (at >= oldest) & (at < p)
            is_in = is_seen[:, None] & is_d[None, :]
            k = tl.load(k_ptr + to * P + within, is_in, 0.0)
            scores = tl.dot(q, tl.trans(operand(k, dtype)), input_precision="ieee")
            if kept == tl.int8:
                scores *= tl.load(k_scale_ptr + to + key * G, is_seen, 0.0)[None, :]
            scores = tl.where(is_seen[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - higher[:, None])
            old = tl.exp2(top - higher)
            total, top = total * old + tl.sum(weights, 1), higher
            v = tl.load(v_ptr + to * P + within, is_in, 0.0)
            if kept == tl.int8:
                weights *= tl.load(v_scale_ptr + to + key * G, is_seen, 0.0)[None, :]
            acc = tl.dot(weights.to(dtype), operand(v, dtype), acc * old[:, None], input_precision="ieee")
        if n_used == 1:
            out = (acc / total[:, None]).to(dtype)
            tl.store(out_ptr + out_at + head[:, None] * P + d[None, :], out, is_q)
        else:
            pair = b.to(tl.int64) * G + g
            if arrived(part_ptr, weight_ptr, arrivals_ptr, pair, split, n_splits, n_used, top, total, acc, R, P):
                one = tl.arange(0, HEADS)
                merge(
                    part_ptr,
                    weight_ptr,
                    out_ptr,
                    pair * n_splits,
                    n_used,
                    (row * G + g) * R + one,
                    one < R,
                    R,
                    P,
                    WIDTH,
                )


def n_splits_of(n_pairs: int, n_pages: int, n_processors: int) -> int:
    """Stretches for so many (sequence, key head) pairs: enough programs to fill the card twice over, of two each."""
    return max(1, min(-(-4 * n_processors // n_pairs), _MOST, -(-n_pages // _LEAST)))


def attend_singles(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], pages: Pages, layer: int, batch: Batch, window: int | None, out: Tensor
) -> None:
    """The first `n_single` sequences of a batch: their keys and values are kept and their rows of `out` written."""
    (_, N, P), G, B = qkv.shape, pages.k[layer].shape[2], batch.n_single
    R, n_pages = (N - 2 * G) // G, batch.tables.shape[1]
    n_splits = n_splits_of(B * G, n_pages, n_processors(qkv.device))
    part = torch.empty((B * G * n_splits * R, P), dtype=torch.float32, device=qkv.device)
    weight = torch.empty((B * G * n_splits * R, 2), dtype=torch.float32, device=qkv.device)
    k_scales, v_scales = (pages.k_scales[layer], pages.v_scales[layer]) if pages.has_scales else (weight, weight)
    rows, width = max(16, triton.next_power_of_2(R)), max(16, triton.next_power_of_2(P))
    _decode_kernel[(B, G, n_splits)](
        qkv, *rotary, pages.k[layer], pages.v[layer], k_scales, v_scales, batch.start_B, batch.first_B, batch.count_B,
        batch.tables, part, weight, batch.arrivals(B * G), out, n_pages, n_splits, P**-0.5 * 1.4426950408889634,
        G=G, R=R, P=P, WINDOW=window or 0, ROWS=rows, HEADS=triton.next_power_of_2(R), WIDTH=width, LEAST=_LEAST,
        PAGE=PAGE, **_shape(qkv.dtype, rows, width),
    )  # fmt: skip


def _shape(dtype: torch.dtype, rows: int, width: int) -> dict[str, int]:
    """Float32 products are sums on ordinary units, whose operands fill registers: fewer keys at once."""
    if dtype == torch.float32:
        return {"KEYS": 16, "num_warps": 4, "num_stages": 2}
    return {"KEYS": 64, "num_warps": 4 if rows * width <= 8192 else 8, "num_stages": 3}
