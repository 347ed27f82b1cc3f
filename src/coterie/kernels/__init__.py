"""The operations a model is made of, chosen by op, device and shape; `reference` is the specification of each."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from coterie.kernels import inference, reference
from coterie.kernels.causal import causal_attention, causal_attention_without_gradients
from coterie.kernels.reference import rotary_tables, rotate

__all__ = ["attention", "combine", "gated_ffn", "products_of", "rms_norm", "rotary_tables", "rotate"]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    if _is_inference(x_TD):
        return inference.rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


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


def _is_inference(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and x.is_cpu


def attention(q_BSHP: Tensor, k_BCGP: Tensor, v_BCGP: Tensor, mask_BSC: Tensor | None, is_causal: bool) -> Tensor:
    """See `reference.attention`."""
    if is_causal and q_BSHP.is_cpu:
        if not torch.is_grad_enabled():
            return causal_attention_without_gradients(q_BSHP, k_BCGP, v_BCGP)
        if q_BSHP.dtype == torch.bfloat16:
            return causal_attention(q_BSHP, k_BCGP, v_BCGP)
    return reference.attention(q_BSHP, k_BCGP, v_BCGP, mask_BSC, is_causal)


def products_of(n_rows: int, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """The context in which a pass over so many rows multiplies fastest."""
    is_native = n_rows == 1 and dtype == torch.bfloat16 and device.type == "cpu"
    return inference.native_products() if is_native else nullcontext()
