"""Training on a card: the sparse block without a host waiting for it, attention, the router; the row kernels by name.

The experts' products are `torch._grouped_mm`, whose groups are offsets on the card: rows by expert times stacked
weights, and for the weights' gradients rows by rows. What lies between them are the kernels of `triton_training`. Where
torch has no grouped products (types other than bfloat16, cards before Hopper) `sparse_training`'s loop does it, which
waits for the number of rows of each expert once a layer.
Shapes: T tokens, K slots, E experts, D width, F expert width, N = T·K pairs sorted by expert, unused ones last,
B sequences, S positions, H query heads, G key heads, P head width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import router_training
from coterie.kernels.gpu_choice import TYPES, is_here

__all__ = [
    "Sorted", "can_route", "has_grouped_products", "is_usable", "operations", "route", "self_attention", "sort",
    "sparse_ffn",
]  # fmt: skip

_ALIGNED = 16  # bytes, of rows
_HOPPER = (9, 0)


def is_usable(*tensors: Tensor) -> bool:
    """Whether the kernels take such tensors: plain ones on a card, of a type they know, outside autocast."""
    return all(
        t.dtype in TYPES and is_here(t.device) and type(t) in (Tensor, torch.nn.Parameter) for t in tensors
    ) and not torch.is_autocast_enabled(tensors[0].device.type)


def operations() -> Any:
    """The module of the row kernels: `training_reference`'s names."""
    from coterie.kernels import triton_training

    return triton_training


class Sorted(NamedTuple):
    """Pairs (token · K + slot) by expert, on the card.

    Example, T=2, K=2, E=3: ids [[1, 0], [1, -1]] are sorted as pairs [1, 0, 2, 3]; ends [1, 3, 3];
    places [[1, 0], [2, -1]].
    """

    pair_N: Tensor  # int64
    place_TK: Tensor  # int64: where each pair went; -1: nowhere
    ends_E: Tensor  # int32: where the rows of each expert end


def sort(ids_TK: Tensor, n_experts: int) -> Sorted:
    """The pairs by expert, equal ones in order."""
    flat = ids_TK.reshape(-1)
    small = torch.uint8 if n_experts < 255 else torch.int16
    keys, pair_N = torch.where(flat < 0, n_experts, flat).to(small).sort(stable=True)
    experts = torch.arange(n_experts, dtype=small, device=flat.device)
    ends_E = torch.searchsorted(keys, experts, right=True, out_int32=True)
    place = torch.empty_like(pair_N).scatter_(0, pair_N, torch.arange(len(pair_N), device=flat.device))
    return Sorted(pair_N, place.masked_fill_(flat < 0, -1).view(ids_TK.shape), ends_E)


def has_grouped_products(x_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> bool:
    """Whether `sparse_ffn` takes such experts."""
    tensors = (x_TD, gate_up_E2FD, down_EDF)
    if not is_usable(*tensors) or not len(x_TD) or len(gate_up_E2FD) >= torch.iinfo(torch.int16).max:
        return False
    if any(t.shape[-1] * t.itemsize % _ALIGNED or not t.is_contiguous() for t in (gate_up_E2FD, down_EDF)):
        return False
    if not x_TD.is_cuda:
        return True  # Triton's interpreter: torch's own loop over groups
    is_fast = x_TD.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_TD.device) >= _HOPPER
    return is_fast and hasattr(torch, "_grouped_mm")


def sparse_ffn(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """See `sparse_training.sparse_ffn_training`; weights float32."""
    y_TD: Tensor = _GroupedFFN.apply(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)  # type: ignore[no-untyped-call]
    return y_TD


def _grouped(a: Tensor, b: Tensor, ends_E: Tensor) -> Tensor:
    """Rows [N, K] by [E, K, M] -> [N, M], or columns [K, N] by rows [N, M] -> [E, K, M]; groups end at `ends_E`."""
    product: Tensor = torch._grouped_mm(a, b, offs=ends_E)
    return product


class _GroupedFFN(torch.autograd.Function):
    """Kept for backward: x, gate and up before SwiGLU; the rows by expert are gathered again, a tenth of those."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        E, K, kernels = len(down_EDF), ids_TK.shape[1], operations()
        x_TD, pairs = x_TD.contiguous(), sort(ids_TK, E)
        x_ND = kernels.gather(x_TD, pairs.pair_N, K)
        h_N2F = _grouped(x_ND, gate_up_E2FD.mT, pairs.ends_E)
        a_NF = h_N2F.new_empty(len(h_N2F), down_EDF.shape[2])
        kernels.swiglu(h_N2F, a_NF, pairs.ends_E[-1:])
        y_ND = _grouped(a_NF, down_EDF.mT, pairs.ends_E)
        ctx.save_for_backward(x_TD, h_N2F, weights_TK, *pairs, gate_up_E2FD, down_EDF)
        return kernels.combine(y_ND, pairs.place_TK, weights_TK)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, h_N2F, weights_TK, pair_N, place_TK, ends_E, gate_up_E2FD, down_EDF = ctx.saved_tensors
        needs_x, _, _, needs_gate_up, needs_down = ctx.needs_input_grad
        K, kernels = place_TK.shape[1], operations()
        grad_ND = kernels.gather(grads[0].contiguous(), pair_N, K)
        grad_a_NF = _grouped(grad_ND, down_EDF, ends_E)
        grad_h_N2F, dots_N = torch.empty_like(h_N2F), torch.empty(len(h_N2F), device=h_N2F.device)
        weights_N = weights_TK.reshape(-1).index_select(0, pair_N)
        kernels.swiglu_backward_(h_N2F, weights_N, grad_a_NF, grad_h_N2F, dots_N, ends_E[-1:])
        grad_down = _of_weights(grad_ND, grad_a_NF, ends_E) if needs_down else None  # it holds weight · a now
        del grad_ND, grad_a_NF
        grad_gate_up = None
        if needs_gate_up:
            grad_gate_up = _of_weights(grad_h_N2F, kernels.gather(x_TD, pair_N, K), ends_E)
        grad_x = kernels.combine(_grouped(grad_h_N2F, gate_up_E2FD, ends_E), place_TK, None) if needs_x else None
        grad_weights = torch.empty_like(dots_N).scatter_(0, pair_N, dots_N).view(weights_TK.shape)
        return grad_x, None, grad_weights, grad_gate_up, grad_down


def _of_weights(grad_NM: Tensor, x_ND: Tensor, ends_E: Tensor) -> Tensor:
    """gradᵀ · x of each expert [E, M, D]; zeros for those without rows."""
    grads = _grouped(grad_NM.t(), x_ND, ends_E)
    operations().clear_idle_(grads, ends_E)
    return grads


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.route`."""
    return router_training.route(x_TD, weight_ED, top_k, renormalise, _Router)


def can_route(x_TD: Tensor, weight_ED: Tensor) -> bool:
    """Whether `route` takes them."""
    if weight_ED.dtype != torch.float32 or not is_usable(x_TD, weight_ED):
        return False
    from coterie.kernels.triton_router_training import MOST_EXPERTS

    return len(weight_ED) <= MOST_EXPERTS and weight_ED.is_contiguous()


class _Router:
    """The operations of `router_training` on a card."""

    @staticmethod
    def route(x_TD: Tensor, weight_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        from coterie.kernels import triton_route

        ids_TK, _, logits_TE = triton_route.route(x_TD, weight_ED, top_k, True)
        return ids_TK, logits_TE

    @staticmethod
    def route_backward(x_TD: Tensor, weight_ED: Tensor, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
        from coterie.kernels import triton_router_training

        return triton_router_training.route_backward(x_TD, weight_ED, grad_TE)


def self_attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], n_sequences: int, n_kv_heads: int, mask_BSC: Tensor | None
) -> Tensor:
    """qkv [T, H + 2G, P], not yet turned -> [T, H·P]; without a mask (True: may look) attention is causal."""
    G, B = n_kv_heads, n_sequences
    cos, sin = (t.float().contiguous() for t in rotary)
    q, k, v = _Heads.apply(qkv.contiguous(), cos, sin, G)  # type: ignore[no-untyped-call]
    q, k, v = (t.view(B, -1, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
    is_grouped = q.shape[1] != G
    if is_grouped and (mask_BSC is not None or qkv.dtype == torch.float32):  # only flash attention knows groups
        k, v = (t.repeat_interleave(q.shape[1] // G, 1) for t in (k, v))
        is_grouped = False
    mask = None if mask_BSC is None else mask_BSC[:, None]
    y = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=is_grouped)
    return y.transpose(1, 2).reshape(len(qkv), -1)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, G: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        from coterie.kernels import triton_heads

        return triton_heads.split_heads(qkv, (cos, sin), G)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from coterie.kernels import triton_heads

        q, k, v = grads
        return triton_heads.split_heads_backward(ctx.saved_tensors, (q, k, v)), None, None, None
