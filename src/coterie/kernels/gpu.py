"""Triton's kernels of inference as one module, imported when the first of them is wanted.

`is_usable` says whether they take a tensor. None of them waits for the card, so a pass can be captured in a graph.
Shapes: T tokens, D model width, F expert width, E experts, K slots of a token, H query heads, P head width.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.kernels.gpu_choice import TYPES, interpreted, is_here, is_usable, n_processors, problem, without
from coterie.kernels.packed import Packed
from coterie.kernels.pages import Pages

if TYPE_CHECKING:
    from coterie.kernels.triton_attention import Batch

__all__ = [
    "TYPES",
    "attention",
    "batch_of",
    "empty_batch",
    "interpreted",
    "is_here",
    "is_usable",
    "n_processors",
    "packed_linear",
    "packed_rows",
    "problem",
    "rms_norm",
    "route",
    "sparse_ffn",
    "swiglu",
    "without",
]

_FEW = 8  # pairs (token, slot): up to here each reads its expert's weights by itself


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    from coterie.kernels import triton_rows

    return triton_rows.rms_norm(x_TD, weight_D, eps)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up, the gate columns first."""
    from coterie.kernels import triton_rows

    return triton_rows.swiglu(gate_up_T2F.contiguous())


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.route`."""
    from coterie.kernels import triton_route

    return triton_route.route(x_TD.contiguous(), weight_ED, top_k, renormalise)


def sparse_ffn(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Any, down: Any) -> Tensor:
    """See `reference.sparse_ffn`; experts are stacked tensors, or packed stacks (`packed.Packed`)."""
    x_TD, ids_TK, weights_TK = x_TD.contiguous(), ids_TK.contiguous(), weights_TK.contiguous()
    if ids_TK.numel() <= _FEW:
        from coterie.kernels import triton_experts

        return triton_experts.few(x_TD, ids_TK, weights_TK, gate_up, down)
    from coterie.kernels import triton_grouped

    return triton_grouped.many(x_TD, ids_TK, weights_TK, gate_up, down)


def packed_linear(x_TD: Tensor, packed: Packed) -> Tensor:
    """x · W^T of a packed matrix, a stack of one: see `Packed.numbers`."""
    from coterie.kernels import triton_linear

    return triton_linear.linear(x_TD.contiguous(), packed)


def packed_rows(packed: Packed, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a packed table: see `Packed.rows`."""
    from coterie.kernels import triton_packed

    return triton_packed.rows(packed, ids_T, dtype)


def batch_of(tables: Tensor, sequences: Any, device: torch.device) -> "Batch":
    """What attention needs to know of a pass: see `triton_attention.Batch.of`."""
    from coterie.kernels.triton_attention import Batch

    return Batch.of(tables, sequences, device)


def empty_batch(n_sequences: int, n_pages: int, device: torch.device) -> "Batch":
    """One to be filled again and again, for passes of one row a sequence."""
    from coterie.kernels.triton_attention import Batch

    return Batch.empty(n_sequences, n_pages, device)


def attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], pages: Pages, layer: int, batch: "Batch", window: int | None
) -> Tensor:
    """Attention of the new rows of a pass over the cache, which takes their keys and values -> [T, H·P]."""
    from coterie.kernels import triton_attention

    return triton_attention.attention(qkv.contiguous(), rotary, pages, layer, batch, window)
