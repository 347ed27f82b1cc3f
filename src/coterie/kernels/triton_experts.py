"""The sparse block for a few tokens in two launches: each pair (token, slot) reads its expert's weights by itself.

The first launch takes gate and up rows together and stores silu(gate) · up of each pair; the second adds the outputs of
a token's slots, in their order and in float32. Programs of pairs that share an expert run side by side, so that the
second one finds the weights in the cache. Unused slots, of id -1, are neither read nor written.
Shapes: T tokens, K slots of a token, E experts, D model width, F expert width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.packed import Packed
from coterie.kernels.triton_dots import arguments, dots

__all__ = ["few"]


@triton.jit
def _gate_up_kernel(
    x_ptr, ids_ptr, h_ptr, low_ptr, high_ptr, scale_ptr, sub_ptr, n_spans, D, F, SLOTS: tl.constexpr,
    BITS: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    pair, block = tl.program_id(0), tl.program_id(1)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    if expert >= 0:
        i = tl.arange(0, 2 * BLOCK)
        row = tl.minimum(block * BLOCK + i % BLOCK, F - 1) + (i // BLOCK) * F
        total = dots(
            low_ptr, high_ptr, scale_ptr, sub_ptr, x_ptr + (pair // SLOTS) * D, expert * (2 * F) + row, n_spans, D,
            BITS, UNIT, GROUP, SCALES, 2 * BLOCK, WIDE, EVEN, EXACT,
        )  # fmt: skip
        gate, up = tl.split(tl.trans(tl.reshape(total, [2, BLOCK])))
        f = block * BLOCK + tl.arange(0, BLOCK)
        h = gate * tl.sigmoid(gate) * up
        tl.store(h_ptr + pair * F + f, h.to(h_ptr.dtype.element_ty), f < F)


@triton.jit
def _down_kernel(
    h_ptr, ids_ptr, weights_ptr, y_ptr, low_ptr, high_ptr, scale_ptr, sub_ptr, n_spans, D, F, SLOTS: tl.constexpr,
    BITS: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    token, n = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    for pair in range(token * SLOTS, token * SLOTS + SLOTS):
        expert = tl.load(ids_ptr + pair).to(tl.int64)
        if expert >= 0:
            y += tl.load(weights_ptr + pair) * dots(
                low_ptr, high_ptr, scale_ptr, sub_ptr, h_ptr + pair * F, expert * D + tl.minimum(n, D - 1), n_spans, F,
                BITS, UNIT, GROUP, SCALES, BLOCK, WIDE, EVEN, EXACT,
            )  # fmt: skip
    tl.store(y_ptr + token * D + n, y.to(y_ptr.dtype.element_ty), n < D)


def few(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor | Packed, down: Tensor | Packed,
    tiles: dict[str, tuple[int, int]] | None = None,
) -> Tensor:  # fmt: skip
    """Σ over slots of weight · expert(x), [T, D]; `gate_up` [E, 2F, D], gate rows first, `down` [E, D, F].

    See `reference.gated_ffn` and `reference.combine`; up(x) · silu(gate(x)) is rounded to x's type in between.
    `tiles`: rows of a program and its warps, by the name of the launch, for measurements.
    """
    (T, D), K, F = x_TD.shape, ids_TK.shape[1], down.shape[2]
    assert x_TD.is_contiguous() and ids_TK.is_contiguous() and weights_TK.is_contiguous()
    assert tuple(gate_up.shape[1:]) == (2 * F, D) and down.shape[1] == D and weights_TK.dtype == torch.float32
    h = torch.empty((T * K, F), dtype=x_TD.dtype, device=x_TD.device)
    y_TD = torch.empty_like(x_TD)
    if T == 0:
        return y_TD
    block, warps = (tiles or {}).get("gate_up") or _tile(gate_up, True)
    _gate_up_kernel[(T * K, triton.cdiv(F, block))](
        x_TD, ids_TK, h, D=D, F=F, SLOTS=K, BLOCK=block, num_warps=warps, **arguments(gate_up, x_TD, warps)
    )
    block, warps = (tiles or {}).get("down") or _tile(down, False)
    _down_kernel[(T, triton.cdiv(D, block))](
        h, ids_TK, weights_TK, y_TD, D=D, F=F, SLOTS=K, BLOCK=block, num_warps=warps, **arguments(down, h, warps)
    )
    return y_TD


def _tile(weights: Tensor | Packed, is_gate_up: bool) -> tuple[int, int]:
    """Rows of a program (of gate, and as many of up) and its warps."""
    if isinstance(weights, Packed) and weights.layout.scales != "fp8":
        if weights.layout.bits in (3, 5, 6):  # two planes take more registers
            return (2 if weights.layout.bits < 6 else 4, 1) if is_gate_up else (4, 2)
        return (4, 1) if is_gate_up else (8, 2)
    return (2, 1) if is_gate_up else (4, 1)
