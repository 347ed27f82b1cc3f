"""The operations a model is made of, chosen by op, device and shape; `reference` is the specification of each.

On a CPU, where no gradient is asked for, the native kernels of `csrc/` are taken if they are there (`cpu`): then a
row's result does not depend on what other rows are in the call. On a card they are Triton's (`gpu`), and nothing waits.
"""

import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import (
    cpu,
    gpu,
    gpu_training,
    inference,
    linear_training,
    norm_training,
    reference,
    router_training,
    sparse_training,
    training,
    training_products,
)
from coterie.kernels.causal import causal_attention_without_gradients
from coterie.kernels.causal_training import causal_self_attention
from coterie.kernels.pages import Pages
from coterie.kernels.reference import RouteEdits, frequencies, rotate

__all__ = [
    "Pages",
    "RouteEdits",
    "add",
    "argmax",
    "attention",
    "cached_attention",
    "causal_self_attention",
    "combine",
    "gated_ffn",
    "has_self_attention",
    "is_native",
    "linear",
    "rms_norm",
    "rotary_tables",
    "rotate",
    "route",
    "router_logits",
    "self_attention",
    "sparse_ffn",
    "sparse_ffn_training",
    "swiglu",
]

_MANY = 1 << 15  # elements: from here on torch shares an operation among its threads, which then keep a core busy


def is_native(x: Tensor) -> bool:
    """Whether the native kernels compute on this input."""
    return cpu.is_usable(x)


def linear(x_TD: Tensor, weight_ND: Tensor, norm: tuple[Tensor, float] | None = None) -> Tensor:
    """norm(x) · weight^T; `norm` is the weight and the epsilon of an RMSNorm."""
    if cpu.is_usable(x_TD) and weight_ND.dtype in (x_TD.dtype, torch.float32):
        return cpu.plain_linear(x_TD, weight_ND, norm)
    if torch.is_grad_enabled() and training_products.has_products(x_TD, weight_ND) and len(weight_ND) % 2 == 0:
        return linear_training.linear(x_TD if norm is None else rms_norm(x_TD, *norm), weight_ND)
    return functional.linear(x_TD if norm is None else rms_norm(x_TD, *norm), weight_ND)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    if cpu.is_usable(x_TD):
        return cpu.rms_norm(x_TD.contiguous(), weight_D, eps)
    if gpu.is_usable(x_TD):
        return gpu.rms_norm(x_TD, weight_D, eps)
    if _is_inference(x_TD):
        return inference.rms_norm(x_TD, weight_D, eps)
    if x_TD.dtype == weight_D.dtype and (training.is_usable(x_TD, weight_D) or gpu_training.is_usable(x_TD, weight_D)):
        return norm_training.rms_norm(x_TD.contiguous(), weight_D.contiguous(), eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def rotary_tables(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `reference.rotary_tables`."""
    frequency_P, _ = frequencies(head_dim, theta, positions_T.device)
    if not cpu.is_usable(frequency_P):
        return reference.rotary_tables(positions_T, head_dim, theta, dtype)
    cos_T1P, sin_T1P = cpu.rotary_tables(positions_T, frequency_P)
    return cos_T1P.to(dtype), sin_T1P.to(dtype)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, of one shape."""
    if a.numel() >= _MANY and cpu.is_usable(a) and a.dtype == b.dtype:
        return cpu.add(a.contiguous(), b.contiguous())
    return a + b


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up, the gate columns first: [T, 2F] -> [T, F]."""
    if cpu.is_usable(gate_up_T2F):  # torch's silu rounds otherwise where the piece of a thread ends
        return cpu.swiglu(gate_up_T2F.contiguous())
    if gpu.is_usable(gate_up_T2F):
        return gpu.swiglu(gate_up_T2F)
    gate_TF, up_TF = gate_up_T2F.chunk(2, -1)
    return functional.silu(gate_TF) * up_TF


def route(
    x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool, edits: RouteEdits | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """ids int32 [T, K], best first, weights float32 [T, K] and logits float32 [T, E]; see `reference.route`."""
    if cpu.is_usable(x_TD):
        return cpu.route(x_TD.contiguous(), weight_ED, top_k, renormalise, edits)
    if edits is not None:
        return reference.edited_route(x_TD, weight_ED, top_k, renormalise, edits)
    if gpu.is_usable(x_TD):
        return gpu.route(x_TD, weight_ED, top_k, renormalise)
    if gpu_training.can_route(x_TD, weight_ED):
        return gpu_training.route(x_TD, weight_ED, top_k, renormalise)
    if training.can_route(x_TD, weight_ED):
        return router_training.route(x_TD, weight_ED, top_k, renormalise, training)
    return reference.route(x_TD, weight_ED, top_k, renormalise)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x · weight^T in the weight's type, which is float32 whatever x is (float64 in a float64 model): [T, E]."""
    if not cpu.is_usable(x_TD) and training.can_route(x_TD, weight_ED):
        return router_training.logits(x_TD, weight_ED, training)
    return linear(x_TD.to(weight_ED.dtype), weight_ED)


def sparse_ffn(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor | None:
    """The whole sparse block in one call, where there is a kernel for it; else None."""
    if gate_up_E2FD.dtype != x_TD.dtype:
        return None
    if gpu.is_usable(x_TD):
        return gpu.sparse_ffn(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)
    if not cpu.is_usable(x_TD):
        return None
    return cpu.plain_experts(x_TD.contiguous(), ids_TK.contiguous(), weights_TK.contiguous(), gate_up_E2FD, down_EDF)


def sparse_ffn_training(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """See `reference.sparse_ffn`; with gradients."""
    if torch.is_autocast_enabled(x_TD.device.type) or not x_TD.dtype == gate_up_E2FD.dtype == down_EDF.dtype:
        return reference.sparse_ffn(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)
    return sparse_training.sparse_ffn_training(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)


def argmax(x_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row [T] and its place int64 [T], the first among equals."""
    if cpu.is_usable(x_TV):
        return cpu.argmax(x_TV.contiguous())
    values_T, ids_T = x_TV.max(-1)
    return values_T, ids_T


def gated_ffn(x_TD: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """See `reference.gated_ffn`."""
    if _is_inference(x_TD):
        return inference.gated_ffn(x_TD, gate_up_2FD, down_DF)
    return reference.gated_ffn(x_TD, gate_up_2FD, down_DF)


def combine(out_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """See `reference.combine`."""
    if _is_inference(out_TKD):
        return inference.combine(out_TKD, weights_TK)
    return reference.combine(out_TKD, weights_TK)


def has_self_attention(qkv: Tensor) -> bool:
    """Whether `self_attention` takes qkv [T, H + 2G, P]."""
    return gpu_training.is_usable(qkv) and qkv.shape[2] % 2 == 0


def self_attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], n_sequences: int, n_kv_heads: int, mask_BSC: Tensor | None
) -> Tensor:
    """Attention of whole sequences with gradients on a card: see `gpu_training.self_attention`."""
    return gpu_training.self_attention(qkv, rotary, n_sequences, n_kv_heads, mask_BSC)


def _is_inference(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and x.is_cpu


def attention(q_BSHP: Tensor, k_BCGP: Tensor, v_BCGP: Tensor, mask_BSC: Tensor | None, is_causal: bool) -> Tensor:
    """See `reference.attention`. Keys and values of a narrower type are widened to that of the queries."""
    k_BCGP, v_BCGP = k_BCGP.to(q_BSHP.dtype), v_BCGP.to(q_BSHP.dtype)
    if is_causal and q_BSHP.is_cpu and not torch.is_grad_enabled():
        return causal_attention_without_gradients(q_BSHP, k_BCGP, v_BCGP)
    return reference.attention(q_BSHP, k_BCGP, v_BCGP, mask_BSC, is_causal)


def cached_attention(
    qkv: Tensor,
    rotary: tuple[Tensor, Tensor],
    pages: Pages,
    layer: int,
    tables: Tensor,
    sequences_B3: Tensor,
    window: int | None,
) -> Tensor:
    """Native attention over a cache, which takes the new keys and values: see `cpu.attention`."""
    return cpu.attention(qkv.contiguous(), rotary, pages, layer, tables, sequences_B3, window)
