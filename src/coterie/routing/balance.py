"""Losses that keep experts busy, and measures of how busy they are. Shapes: T tokens, E experts, K per token."""

import torch
from torch import Tensor

from coterie.routing.assignment import Assignment

__all__ = ["expert_counts", "load_balancing_loss", "z_loss"]


def expert_counts(routing: Assignment, mask_T: Tensor | None = None) -> Tensor:
    """How many (token, slot) pairs each expert got: float32 [E], unused slots and padding left out."""
    ids = routing.ids_TK if mask_T is None else routing.ids_TK[mask_T]
    used = ids[ids >= 0].long()
    return torch.bincount(used, minlength=routing.logits_TE.shape[-1]).float()


def load_balancing_loss(routing: Assignment, mask_T: Tensor | None = None) -> Tensor:
    """E · Σ_e f_e · p_e (arXiv 2101.03961, eq. 4): f_e the share of pairs, p_e the mean probability of expert e.

    One layer, its ideal value 1 whatever K (transformers' loss has the ideal K: divide its coefficient's effect by K).
    """
    counts_E = expert_counts(routing, mask_T)
    logits_TE = routing.logits_TE if mask_T is None else routing.logits_TE[mask_T]
    share_E = counts_E / counts_E.sum().clamp(min=1)
    return share_E.shape[0] * (share_E * logits_TE.softmax(-1).mean(0)).sum()


def z_loss(routing: Assignment, mask_T: Tensor | None = None) -> Tensor:
    """Mean of logsumexp(logits)² (arXiv 2202.08906, eq. 5): keeps router logits small."""
    logits_TE = routing.logits_TE if mask_T is None else routing.logits_TE[mask_T]
    return logits_TE.logsumexp(-1).square().mean()
