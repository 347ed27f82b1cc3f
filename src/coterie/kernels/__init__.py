"""The operations a model is made of, chosen by op, device and shape; `reference` is the specification of each."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from coterie.kernels import reference, single_row
from coterie.kernels.reference import attention, gated_ffn, rotary_tables, rotate

__all__ = ["attention", "gated_ffn", "products_of", "rms_norm", "rotary_tables", "rotate"]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    if x_TD.shape[0] == 1 and not torch.is_grad_enabled() and x_TD.device.type == "cpu":
        return single_row.rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def products_of(n_rows: int, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """The context in which a pass over so many rows multiplies fastest."""
    is_native = n_rows == 1 and dtype == torch.bfloat16 and device.type == "cpu"
    return single_row.native_products() if is_native else nullcontext()
