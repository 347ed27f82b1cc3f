"""Queries, keys and values out of their common projection, the first two turned, and back: one launch each way.

`reference.rotate` is the specification. Shapes: T rows, H query heads, G key heads, P head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["split_heads", "split_heads_backward"]

_HEADS = 8  # of a program


@triton.jit
def _split_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, H: tl.constexpr, G: tl.constexpr, P: tl.constexpr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, IS_BACKWARD: tl.constexpr,
):  # fmt: skip
    """Queries and keys turned by their position, values as they are; backward the other way, from q, k, v to qkv."""
    row = tl.program_id(0).to(tl.int64)
    head, at = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, WIDTH)[None, :]
    n: tl.constexpr = H + 2 * G
    is_in = (head < n) & (at < P)
    is_q, is_k, is_v = is_in & (head < H), is_in & (head >= H) & (head < H + G), is_in & (head >= H + G)
    other = (at + P // 2) % P
    cos = tl.load(cos_ptr + row * P + at, at < P, 0.0)
    all_at, q_at = (row * n + head) * P, (row * H + head) * P
    k_at, v_at = (row * G + head - H) * P, (row * G + head - H - G) * P
    if IS_BACKWARD:
        sin = tl.load(sin_ptr + row * P + other, at < P, 0.0)
        x = tl.load(q_ptr + q_at + at, is_q, 0.0).to(tl.float32) + tl.load(k_ptr + k_at + at, is_k, 0.0).to(tl.float32)
        y = tl.load(q_ptr + q_at + other, is_q, 0.0).to(tl.float32)
        y += tl.load(k_ptr + k_at + other, is_k, 0.0).to(tl.float32)
        value = tl.load(v_ptr + v_at + at, is_v, 0.0).to(tl.float32)
        tl.store(qkv_ptr + all_at + at, (x * cos + y * sin + value).to(qkv_ptr.dtype.element_ty), is_in)
    else:
        sin = tl.load(sin_ptr + row * P + at, at < P, 0.0)
        x = tl.load(qkv_ptr + all_at + at, is_in, 0.0)
        y = tl.load(qkv_ptr + all_at + other, is_in, 0.0).to(tl.float32)
        turned = (x.to(tl.float32) * cos + y * sin).to(x.dtype)
        tl.store(q_ptr + q_at + at, turned, is_q)
        tl.store(k_ptr + k_at + at, turned, is_k)
        tl.store(v_ptr + v_at + at, x, is_v)


def split_heads(qkv: Tensor, rotary: tuple[Tensor, Tensor], n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, H + 2G, P] -> q [T, H, P] and k [T, G, P], turned by `reference.rotate`, and v [T, G, P]."""
    (T, n, P), G = qkv.shape, n_kv_heads
    q, k, v = (qkv.new_empty(T, heads, P) for heads in (n - 2 * G, G, G))
    _split(qkv, rotary, (q, k, v), is_backward=False)
    return q, k, v


def split_heads_backward(rotary: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The gradient of qkv from those of q, k and v."""
    q, k, v = (t.contiguous() for t in grads)
    grad_qkv = q.new_empty(len(q), q.shape[1] + 2 * k.shape[1], q.shape[2])
    _split(grad_qkv, rotary, (q, k, v), is_backward=True)
    return grad_qkv


def _split(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], parts: tuple[Tensor, Tensor, Tensor], *, is_backward: bool
) -> None:
    (T, n, P), G = qkv.shape, parts[1].shape[1]
    assert qkv.is_contiguous() and P % 2 == 0
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    if T:
        _split_kernel[(T, triton.cdiv(n, _HEADS))](
            qkv, *rotary, *parts, n - 2 * G, G, P, HEADS=_HEADS, WIDTH=triton.next_power_of_2(P),
            IS_BACKWARD=is_backward, num_warps=4,
        )  # fmt: skip
