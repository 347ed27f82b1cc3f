"""What `training` computes, in plain torch: for other devices, float64 and machines without native kernels.

Shapes as there.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels.reference import rotate

__all__ = [
    "AdamSettings",
    "Pairs",
    "adam_",
    "add_transposed_product_",
    "combine",
    "cross_entropy_",
    "merge_heads",
    "product",
    "rms_norm",
    "rms_norm_backward",
    "softmax_",
    "softmax_backward_",
    "sort_pairs",
    "split_heads",
    "square_sum",
    "strips_of_columns",
    "strips_of_rows",
    "swiglu",
    "swiglu_backward_",
    "transposed_product",
]


class Pairs(NamedTuple):
    """The N pairs (token · K + slot) that have an expert, sorted by it, equal ones in order.

    Example, T=2 tokens, K=2: ids [[1, 0], [1, -1]] are the pairs 0..3 with experts 1, 0, 1, -1.
    Sorted: pair_N = [1, 0, 2], token_N = [0, 0, 1]; place_TK = [[1, 0], [2, -1]]; counts = [1, 2].
    """

    pair_N: Tensor
    token_N: Tensor
    place_TK: Tensor  # where each pair went; -1: nowhere
    counts: list[int]


class AdamSettings(NamedTuple):
    """With g = scale · grad: mean and square are the running means of g and g² by beta1 and beta2; then

    weight = keep · weight - step · mean / (sqrt(square) / root + eps).
    """

    scale: float
    keep: float
    beta1: float
    beta2: float
    step: float
    root: float
    eps: float


def sort_pairs(ids_TK: Tensor, n_experts: int) -> Pairs:
    flat = ids_TK.reshape(-1).long()
    counts = torch.bincount(flat + 1, minlength=n_experts + 1).tolist()
    sorted_pairs = flat.argsort(stable=True)
    pair_N = sorted_pairs[counts[0] :]
    place = torch.full_like(flat, -1)
    place[pair_N] = torch.arange(len(pair_N), device=flat.device)
    return Pairs(pair_N, pair_N // ids_TK.shape[1], place.view(ids_TK.shape), counts[1:])


def swiglu(h_n2F: Tensor, out_nF: Tensor) -> None:
    gate_nF, up_nF = h_n2F.chunk(2, -1)
    torch.mul(functional.silu(gate_nF), up_nF, out=out_nF)


def swiglu_backward_(h_n2F: Tensor, weights_n: Tensor, grad_nF: Tensor, grad_h_n2F: Tensor, dots_n: Tensor) -> None:
    """With s = sigmoid(gate): silu' = s · (1 + gate · (1 - s))."""
    F = grad_nF.shape[1]
    gate_nF, up_nF = h_n2F.chunk(2, -1)
    s_nF = gate_nF.sigmoid()
    silu_nF = gate_nF * s_nF
    a_nF, weights_n1 = silu_nF * up_nF, weights_n[:, None].to(h_n2F.dtype)
    dots_n.copy_((a_nF.to(dots_n.dtype) * grad_nF).sum(-1))
    weighted_nF = grad_nF * weights_n1
    grad_h_n2F[:, :F] = weighted_nF * up_nF * (s_nF * (1 + gate_nF * (1 - s_nF)))
    grad_h_n2F[:, F:] = weighted_nF * silu_nF
    torch.mul(a_nF, weights_n1, out=grad_nF)


def combine(rows_ND: Tensor, place_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    wide = torch.promote_types(rows_ND.dtype, torch.float32)
    sum_TD = rows_ND.new_zeros(len(place_TK), rows_ND.shape[1], dtype=wide)
    if len(rows_ND) == 0:
        return sum_TD.to(rows_ND.dtype)
    for slot in range(place_TK.shape[1]):
        place_T = place_TK[:, slot]
        weight_T = (place_T >= 0).to(wide) if weights_TK is None else weights_TK[:, slot] * (place_T >= 0)
        sum_TD.addcmul_(rows_ND[place_T.clamp(min=0)].to(wide), weight_T[:, None])
    return sum_TD.to(rows_ND.dtype)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    inverse_T = (wide.square().mean(-1) + eps).rsqrt()
    return weight_D * (wide * inverse_T[:, None]).to(x_TD.dtype), inverse_T


def rms_norm_backward(x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
    wide, inverse_T1 = inverse_T.dtype, inverse_T[:, None]
    y_TD, grad_y_TD = x_TD.to(wide) * inverse_T1, grad_TD.to(wide) * weight_D.to(wide)
    grad_x_TD = (grad_y_TD - y_TD * (grad_y_TD * y_TD).mean(-1, keepdim=True)) * inverse_T1
    return grad_x_TD.to(x_TD.dtype), (grad_TD.to(wide) * y_TD).sum(0).to(weight_D.dtype)


def split_heads(rows_BSnP: Tensor, rotary: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
    if rotary is not None:
        cos, sin = (t.to(rows_BSnP.dtype) for t in rotary)
        rows_BSnP = rotate(rows_BSnP.flatten(0, 1), cos, sin).view(rows_BSnP.shape)
    return (rows_BSnP * scale).transpose(1, 2).contiguous()


def merge_heads(heads_BnSP: Tensor, rotary: tuple[Tensor, Tensor] | None, scale: float, rows_BSnP: Tensor) -> None:
    rows = heads_BnSP.transpose(1, 2)
    if rotary is not None:
        cos, sin = (t.to(rows.dtype).view(*rows.shape[:2], 1, -1) for t in rotary)
        rows = rows * cos + (rows * sin).roll(rows.shape[-1] // 2, -1)
    rows_BSnP.copy_(rows * scale)


def softmax_(scores_NrnC: Tensor, documents_BS: Tensor | None) -> None:
    N, _, n, C = scores_NrnC.shape
    query_n, key_C = (torch.arange(*ends, device=scores_NrnC.device) for ends in ((C - n, C), (C,)))
    hidden = key_C > query_n[:, None]
    if documents_BS is not None:
        document_BC = documents_BS[:, :C]
        other = document_BC[:, None] != document_BC[:, C - n :, None]
        hidden = (hidden | other).repeat_interleave(N // len(documents_BS), 0)[:, None]
    scores_NrnC.copy_(scores_NrnC.masked_fill(hidden, -torch.inf).softmax(-1))


def softmax_backward_(probabilities_NrnC: Tensor, grad_NrnC: Tensor) -> None:
    p = probabilities_NrnC
    grad_NrnC.copy_(torch._softmax_backward_data(grad_NrnC, p, -1, p.dtype))


def cross_entropy_(logits_nV: Tensor, target_n: Tensor) -> Tensor:
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    counted_n1, index_n1 = (target_n >= 0)[:, None], target_n.clamp(min=0)[:, None]
    top_n1 = logits_nV.amax(-1, keepdim=True).to(wide)
    wanted_n1 = logits_nV.gather(-1, index_n1).to(wide)
    exp_nV = logits_nV.to(wide).sub_(top_n1).exp_() if logits_nV.dtype != wide else (logits_nV - top_n1).exp_()
    sum_n1 = exp_nV.sum(-1, keepdim=True)
    losses_n1 = (sum_n1.log() + top_n1 - wanted_n1) * counted_n1
    counted_n1 = counted_n1.to(wide)
    logits_nV.copy_(exp_nV.mul_(counted_n1 / sum_n1).scatter_add_(-1, index_n1, -counted_n1))
    return losses_n1.squeeze(1)


def adam_(
    master: Tensor, grad: Tensor, mean: Tensor, square: Tensor, out: Tensor | None, settings: AdamSettings
) -> None:
    s = settings
    g = grad.to(master.dtype) * s.scale
    mean.lerp_(g, 1 - s.beta1)
    square.mul_(s.beta2).addcmul_(g, g, value=1 - s.beta2)
    master.mul_(s.keep).addcdiv_(mean, square.sqrt().div_(s.root).add_(s.eps), value=-s.step)
    if out is not None:
        out.copy_(master)


def square_sum(x: Tensor) -> float:
    return float(x.double().square().sum())


def strips_of_rows(x_NK: Tensor) -> Tensor:
    return x_NK.t()


def strips_of_columns(x_KN: Tensor) -> Tensor:
    return x_KN


def product(x_TK: Tensor, strips: Tensor, n_columns: int) -> Tensor:
    assert strips.shape == (x_TK.shape[1], n_columns)
    return x_TK @ strips


def transposed_product(a_nM: Tensor, b_nN: Tensor) -> Tensor:
    return a_nM.t() @ b_nN


def add_transposed_product_(sums_MN: Tensor, a_nM: Tensor, b_nN: Tensor) -> None:
    if sums_MN.dtype == a_nM.dtype:
        sums_MN.addmm_(a_nM.t(), b_nN)
    else:
        sums_MN += a_nM.t() @ b_nN
