"""Every operation in plain torch: the specification that faster kernels are compared with.

Shapes: T tokens, D model width, N output width, P head width, H query heads, G key/value heads, S new positions,
C positions in the cache, F expert width, K experts a token. Norms, softmax and sums over experts run in float32, or in
float64 where the inputs are that; the angles of the rotary embedding are float32 always.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "RouteEdits",
    "attention",
    "combine",
    "edited_route",
    "frequencies",
    "gated_ffn",
    "kept_weights",
    "rms_norm",
    "rotary_tables",
    "rotate",
    "route",
    "wide",
]


def wide(x: Tensor) -> Tensor:
    """In float32, or as it is in float64: what norms, routers and sums are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight (arXiv 1910.07467), the quotient rounded to x's dtype before the product."""
    if x_TD.dtype in (torch.float32, torch.float64):
        return functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return weight_D * functional.rms_norm(x_TD.float(), weight_D.shape, None, eps).to(x_TD.dtype)


def rotary_tables(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_T1P and signed sin_T1P for `rotate`; angles in float32: position · theta^(-2i/P) (arXiv 2104.09864).

    Example, P=4: the angles of one position p are [p, p·theta^-0.5, p, p·theta^-0.5] and the sign row is [-, -, +, +].
    """
    frequency_P, sign_P = frequencies(head_dim, theta, positions_T.device)
    angle_T1P = positions_T[:, None, None] * frequency_P
    return angle_T1P.cos().to(dtype), (angle_T1P.sin() * sign_P).to(dtype)


@functools.lru_cache(maxsize=8)
def frequencies(head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """theta^(-2i/P) of the pairs, twice over, and the signs of their sines: float32 [P] each."""
    with torch.inference_mode(False):  # they may meet autograd later
        exponent_P2 = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        sign_P = torch.ones(head_dim, device=device)
        sign_P[: head_dim // 2] = -1
        return (1.0 / theta**exponent_P2).repeat(2), sign_P


def rotate(x_THP: Tensor, cos_T1P: Tensor, sin_T1P: Tensor) -> Tensor:
    """Rotary embedding for half-split rows: pair (i, i + P/2) turns by its angle."""
    return (x_THP * cos_T1P).addcmul_(x_THP.roll(x_THP.shape[-1] // 2, -1), sin_T1P)


def attention(q_BSHP: Tensor, k_BCGP: Tensor, v_BCGP: Tensor, mask_BSC: Tensor | None, is_causal: bool) -> Tensor:
    """Grouped-query attention -> [B, S, H, P]; head h reads key head h // (H/G); mask True = may look."""
    B, S, H, P = q_BSHP.shape
    G = k_BCGP.shape[2]
    k, v = k_BCGP.transpose(1, 2), v_BCGP.transpose(1, 2)
    if S == 1 and not is_causal:  # the H/G queries of a key head stand as its S: no copy of the keys
        q = q_BSHP.view(B, G, H // G, P)
        mask = None if mask_BSC is None else mask_BSC.unsqueeze(1)
        return functional.scaled_dot_product_attention(q, k, v, mask).reshape(B, 1, H, P)
    mask = None if mask_BSC is None else mask_BSC.unsqueeze(1)
    q = q_BSHP.transpose(1, 2)
    if H != G:
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
    return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal).transpose(1, 2)


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the K largest (the lowest id among equals), their softmax, over all of them unless renormalised.

    -> ids int32 [T, K], weights float32 [T, K], logits float32 [T, E] (arXiv 2401.04088, section 2.1).
    """
    x_TD = wide(x_TD)
    logits_TE = functional.linear(x_TD, weight_ED.to(x_TD.dtype))
    sorted_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
    kept_TK = sorted_TE.narrow(1, 0, top_k)
    return order_TE.narrow(1, 0, top_k).to(torch.int32), kept_weights(kept_TK, logits_TE, renormalise), logits_TE


class RouteEdits(NamedTuple):
    """What some rows' choice of experts is changed by. N edits, each of one or more rows."""

    of_row_T: Tensor  # int32: which edit, or -1
    bias_NE: Tensor  # float32, added to the logits; -inf: never
    top_k_N: Tensor  # int32: how many experts
    n_slots: int  # of every row, the unused ones -1 with weight 0


def edited_route(
    x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool, edits: RouteEdits
) -> tuple[Tensor, Tensor, Tensor]:
    """`route` where some rows choose and weigh logits + bias and take another number of experts."""
    ids_TK, weights_TK, logits_TE = route(x_TD, weight_ED, top_k, renormalise)
    ids_TS = functional.pad(ids_TK, (0, edits.n_slots - top_k), value=-1)
    weights_TS = functional.pad(weights_TK, (0, edits.n_slots - top_k))
    row_n = (edits.of_row_T >= 0).nonzero().squeeze(1)
    edit_n = edits.of_row_T[row_n].long()
    scores_nE = logits_TE[row_n] + edits.bias_NE[edit_n].to(logits_TE.dtype)
    sorted_nE, order_nE = scores_nE.sort(dim=-1, descending=True, stable=True)
    is_used_nS = torch.arange(edits.n_slots, device=x_TD.device) < edits.top_k_N[edit_n, None]
    kept_nS = sorted_nE[:, : edits.n_slots].masked_fill(~is_used_nS, -torch.inf)
    weights_TS[row_n] = kept_weights(kept_nS, scores_nE, renormalise)
    ids_TS[row_n] = order_nE[:, : edits.n_slots].int().masked_fill(~is_used_nS, -1)
    return ids_TS, weights_TS, logits_TE


def kept_weights(kept_TK: Tensor, logits_TE: Tensor, renormalise: bool) -> Tensor:
    """The softmax of the kept logits, over themselves or over all."""
    return kept_TK.softmax(-1) if renormalise else (kept_TK - logits_TE.logsumexp(-1, keepdim=True)).exp()


def gated_ffn(x_TD: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x)), the gate rows first in `gate_up`."""
    gate_TF, up_TF = functional.linear(x_TD, gate_up_2FD).chunk(2, -1)
    return functional.linear(functional.silu(gate_TF) * up_TF, down_DF)


def combine(out_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """Σ over slots 0..K-1, in that order and in float32, of weight · output; rounded to the dtype of the outputs."""
    y_TD = wide(out_TKD[:, 0]) * weights_TK[:, 0, None]
    for slot in range(1, out_TKD.shape[1]):
        y_TD = torch.addcmul(y_TD, wide(out_TKD[:, slot]), weights_TK[:, slot, None])
    return y_TD.to(out_TKD.dtype)


def sparse_ffn(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """Σ over slots, in order, of weight · gated_ffn(x) of the slot's expert; an id of -1 adds nothing."""
    T, K = ids_TK.shape
    flat = ids_TK.reshape(-1)
    out_ND = x_TD.new_zeros(T * K, x_TD.shape[1])
    for e, (gate_up_2FD, down_DF) in enumerate(zip(gate_up_E2FD.unbind(), down_EDF.unbind(), strict=True)):
        pair_n = (flat == e).nonzero().squeeze(1)
        out_nD = gated_ffn(x_TD[pair_n // K], gate_up_2FD, down_DF)
        out_ND = out_ND.index_copy(0, pair_n, out_nD.to(out_ND.dtype))
    used_TK = weights_TK * (ids_TK >= 0)
    return combine(out_ND.view(T, K, x_TD.shape[1]), used_TK)
