"""Triton kernels of one row each: norms, sums, SwiGLU; `reference` is the specification.

A row is read once and stays in registers. Sums are float32.
Shapes: T tokens, D model width, F expert width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add", "rms_norm", "swiglu"]

_BLOCK = 1024  # elements of a program that knows no rows


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, stride, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_in = at < D
    x = tl.load(x_ptr + row * stride + at, is_in, 0.0)
    weight = tl.load(weight_ptr + at, is_in, 0.0).to(tl.float32)
    wide = x.to(tl.float32)
    quotient = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)).to(x.dtype)  # rounded before the product
    tl.store(out_ptr + row * D + at, (quotient.to(tl.float32) * weight).to(x.dtype), is_in)


@triton.jit
def _add_kernel(a_ptr, b_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < n
    total = tl.load(a_ptr + at, is_in, 0.0).to(tl.float32) + tl.load(b_ptr + at, is_in, 0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), is_in)


@triton.jit
def _swiglu_kernel(x_ptr, out_ptr, F, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < F
    gate = tl.load(x_ptr + row * 2 * F + at, is_in, 0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * F + F + at, is_in, 0.0).to(tl.float32)
    tl.store(out_ptr + row * F + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), is_in)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; rows may lie apart, in each they follow one another."""
    T, D = x_TD.shape
    assert x_TD.stride(1) == 1 and weight_D.is_contiguous()
    out_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    if T:
        _rms_norm_kernel[(T,)](x_TD, weight_D, out_TD, x_TD.stride(0), eps, D, **_of_row(D))
    return out_TD


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of one shape and type."""
    assert a.is_contiguous() and b.is_contiguous() and a.shape == b.shape and a.dtype == b.dtype
    out = torch.empty_like(a)
    if a.numel():
        _add_kernel[(triton.cdiv(a.numel(), _BLOCK),)](a, b, out, a.numel(), BLOCK=_BLOCK)
    return out


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up in float32, rounded once; the gate columns come first: [T, 2F] -> [T, F]."""
    T, F = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    assert gate_up_T2F.is_contiguous()
    out_TF = torch.empty((T, F), dtype=gate_up_T2F.dtype, device=gate_up_T2F.device)
    if T:
        _swiglu_kernel[(T, triton.cdiv(F, _BLOCK))](gate_up_T2F, out_TF, F, BLOCK=_BLOCK)
    return out_TF


def _of_row(D: int) -> dict[str, int]:
    """The block that holds a row, and enough warps that each thread has about 16 numbers of it."""
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
