"""Losses that keep experts busy, and the bias that does it without a loss.

Every load-balancing loss here is 1 where load and probability are even, whatever K, and E/K where K have it all; the
value of a model is the mean over its sparse layers. Padding is left out everywhere.
Shapes: T tokens, E experts, K slots a token, B sequences, L sparse layers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from coterie.errors import ConfigError, nearest
from coterie.routing.assignment import Routing, Rows

__all__ = [
    "CONVENTIONS",
    "SCOPES",
    "LoadBalance",
    "expert_counts",
    "importance_loss",
    "load_balancing_loss",
    "load_loss",
    "translate_coefficient",
    "update_bias",
    "z_loss",
]

SCOPES = ("sequence", "micro", "global")
CONVENTIONS = ("transformers", "megatron", "megablocks", "deepspeed", "switch")


def expert_counts(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """How many (token, slot) pairs each expert got: float32 [E], unused slots and padding left out."""
    n_experts = routing.logits_TE.shape[-1]
    if not routing.ids_TK.is_cpu:
        return _counts_without_waiting(routing.ids_TK, n_experts, mask_T)
    ids = routing.ids_TK if mask_T is None else routing.ids_TK[mask_T]
    used = ids[ids >= 0].long()
    return torch.bincount(used, minlength=n_experts).float()


def _counts_without_waiting(ids_TK: Tensor, n_experts: int, mask_T: Tensor | None) -> Tensor:
    """The same on a card, where the host would wait for the number of rows that a mask leaves."""
    is_used = ids_TK >= 0 if mask_T is None else (ids_TK >= 0) & mask_T[:, None]
    place = torch.where(is_used, ids_TK, n_experts).flatten().long()
    ones = torch.ones(place.shape, device=place.device)
    return torch.zeros(n_experts + 1, device=place.device).scatter_add_(0, place, ones)[:-1]


def load_balancing_loss(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """E · Σ_e f_e · p_e (arXiv 2101.03961, eq. 4): f_e the share of pairs, p_e the mean probability of expert e.

    One layer, its ideal value 1 whatever K (transformers' loss has the ideal K: see `translate_coefficient`).
    """
    return _load_balance(expert_counts(routing, mask_T), _mean(routing.logits_TE.softmax(-1), mask_T))


def z_loss(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """Mean of logsumexp(logits)² (arXiv 2202.08906, eq. 5): keeps router logits small."""
    return _mean(routing.logits_TE.logsumexp(-1).square(), mask_T)


def importance_loss(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """Squared coefficient of variation of the experts' summed weights (arXiv 1701.06538, eq. 6 and 7); ideal 0."""
    ids_TK, weights_TK = _kept(routing.ids_TK, mask_T).long(), _kept(routing.weights_TK, mask_T)
    importance_E = torch.zeros_like(routing.logits_TE[0]).index_add(
        0, ids_TK.clamp(min=0).flatten(), weights_TK.flatten()
    )
    return _squared_variation(importance_E)


def load_loss(logits_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, top_k: int, mask_T: Tensor | None = None) -> Tensor:
    """Squared coefficient of variation of the load, made smooth by the noise (arXiv 1701.06538, appendix A); ideal 0.

    Σ_T P(expert e is among the K best if its noise were drawn again): Φ((logit - k-th best of the others) / std).
    """
    n_experts = logits_TE.shape[-1]
    if top_k == n_experts:
        return logits_TE.new_zeros(())
    best_T = noisy_TE.topk(top_k + 1, -1).values
    is_in_TE = noisy_TE > best_T[:, -1:]
    kth_of_others_TE = torch.where(is_in_TE, best_T[:, -1:], best_T[:, -2:-1])
    chance_TE = torch.special.ndtr((logits_TE - kth_of_others_TE) / std_TE)
    return _squared_variation(_kept(chance_TE, mask_T).sum(0))


class LoadBalance:
    """The load-balancing loss of the micro-batches of a step, by what is to be even.

    "sequence": each sequence by itself, the mean over sequences: the same however a step is cut into micro-batches and
    ranks. "micro": each micro-batch. "global": the whole step; load is summed over the ranks and the micro-batches so
    far (arXiv 2501.11873), so that experts may differ between texts. `reduce` sums a tensor over the ranks; all ranks
    call the same methods in the same order.
    """

    def __init__(self, scope: str, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor):
        if scope not in SCOPES:
            raise ConfigError(f"the scope of balance is {scope!r}, expected one of {', '.join(SCOPES)}")
        self.scope, self._reduce = scope, reduce
        self.start_step()

    def start_step(self) -> None:
        self._counts_LE: Tensor | None = None  # of this rank, and so is the next
        self._probability_LE: Tensor | None = None  # summed over tokens
        self._totals: tuple[Tensor, Tensor] | None = None  # of both, over the ranks

    def losses(self, routings: Sequence[Routing], rows: Rows) -> Tensor:
        """The loss of this micro-batch, mean over layers; its load is added to the step's."""
        if not routings:
            return torch.zeros(())
        counts_LE = torch.stack([expert_counts(r, rows.mask_T) for r in routings])
        share_LE = torch.stack([_sum(r.logits_TE.softmax(-1), rows.mask_T) for r in routings])
        self._add(counts_LE, share_LE.detach())
        if self.scope == "sequence":
            return torch.stack([_by_sequence(r, rows) for r in routings]).mean()
        if self.scope == "global":
            assert self._counts_LE is not None
            counts_LE = self._reduce(self._counts_LE.clone())
        return _load_balance(counts_LE, share_LE / _count(routings[0].logits_TE, rows.mask_T)).mean()

    def exact(self) -> list[float]:
        """The loss of each layer over the step so far as one, all micro-batches and ranks, whatever the scope."""
        if self._counts_LE is None:
            return []
        counts_LE, probability_LE = self._over_ranks()
        n_tokens_L1 = probability_LE.sum(-1, keepdim=True).clamp(min=1e-9)
        values: list[float] = _load_balance(counts_LE, probability_LE / n_tokens_L1).tolist()
        return values

    @property
    def counts(self) -> list[Tensor]:
        """Of each layer, the pairs that each expert got in the step so far, over all ranks: float32 [E]."""
        return [] if self._counts_LE is None else list(self._over_ranks()[0])

    def _add(self, counts_LE: Tensor, probability_LE: Tensor) -> None:
        self._totals = None
        if self._counts_LE is None or self._probability_LE is None:
            self._counts_LE, self._probability_LE = counts_LE, probability_LE
        else:
            self._counts_LE, self._probability_LE = self._counts_LE + counts_LE, self._probability_LE + probability_LE

    def _over_ranks(self) -> tuple[Tensor, Tensor]:
        assert self._counts_LE is not None and self._probability_LE is not None
        if self._totals is None:
            self._totals = self._reduce(self._counts_LE.clone()), self._reduce(self._probability_LE.clone())
        return self._totals


def update_bias(router: nn.Module, counts_E: Tensor, rate: float) -> None:
    """Raise the bias of experts below the mean load, lower it above: once per optimizer step (arXiv 2408.15664, 3.1).

    The mean of the bias is taken off: it changes no choice, and without that it drifts.
    """
    bias_E = router.get_buffer("bias")
    bias_E += rate * (counts_E.mean() - counts_E).sign().to(bias_E)
    bias_E -= bias_E.mean()


def translate_coefficient(value: float, convention: str, top_k: int, n_layers: int) -> float:
    """The coefficient that weighs our loss (ideal 1, mean over layers) as `value` weighs that of another stack.

    "coterie" is our own. "transformers": ideal K, the layers' tokens in one heap. "megablocks": ideal 1, mean over
    layers. "switch", "megatron", "deepspeed": ideal 1, summed over layers; DeepSpeed's top-2 counts the first choice
    alone, so there the two agree only where first and second choices are loaded alike.
    """
    factors = {"coterie": 1, "transformers": top_k, "megablocks": 1}
    factors |= dict.fromkeys(("switch", "megatron", "deepspeed"), n_layers)
    if convention not in factors:
        raise ConfigError(
            f"the convention {convention!r} of a balance coefficient is not known, expected one of "
            f"{', '.join(CONVENTIONS)}{nearest(convention, CONVENTIONS)}"
        )
    return value * factors[convention]


def _kept(x: Tensor, mask_T: Tensor | None) -> Tensor:
    return x if mask_T is None else x[mask_T]


def _sum(x_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """Over the tokens that the mask keeps; x [T, ...]. A card does not wait to learn how many they are."""
    if mask_T is None or x_T.is_cpu:
        return _kept(x_T, mask_T).sum(0)
    return torch.where(mask_T.view(-1, *[1] * (x_T.ndim - 1)), x_T, 0).sum(0)


def _count(x_T: Tensor, mask_T: Tensor | None) -> Tensor | int:
    """How many tokens those are, 1 at least."""
    if mask_T is None:
        return max(1, len(x_T))
    return max(1, int(mask_T.sum())) if x_T.is_cpu else mask_T.sum().clamp(min=1)


def _mean(x_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """Over the tokens; 0 where there is none."""
    return _sum(x_T, mask_T) / _count(x_T, mask_T)


def _load_balance(counts_E: Tensor, probability_E: Tensor) -> Tensor:
    """E · Σ_e f_e · p_e over the last dimension."""
    share_E = counts_E.to(probability_E.dtype) / counts_E.sum(-1, keepdim=True).clamp(min=1)
    return counts_E.shape[-1] * (share_E * probability_E).sum(-1)


def _by_sequence(routing: Routing, rows: Rows) -> Tensor:
    """The loss of each sequence, 0 of one that is padding alone: [B]."""
    T, E = routing.logits_TE.shape
    sequence_T = torch.zeros(T, dtype=torch.int64, device=routing.logits_TE.device)
    sequence_T = sequence_T if rows.sequence_T is None else rows.sequence_T.long()
    B = int(sequence_T.max()) + 1 if T else 1
    counted_T1 = torch.ones(T, 1, device=sequence_T.device) if rows.mask_T is None else rows.mask_T[:, None].float()
    ids_TK = routing.ids_TK.long()
    pair_TK = torch.where(ids_TK >= 0, sequence_T[:, None] * E + ids_TK, B * E)
    counts_BE = torch.zeros(B * E + 1, device=sequence_T.device)
    counts_BE = counts_BE.index_add_(0, pair_TK.flatten(), counted_T1.expand_as(ids_TK).flatten())[:-1].view(B, E)
    tokens_B1 = counted_T1.new_zeros(B, 1).index_add_(0, sequence_T, counted_T1).clamp(min=1)
    share_TE = routing.logits_TE.softmax(-1)
    probability_BE = share_TE.new_zeros(B, E).index_add(0, sequence_T, share_TE * counted_T1) / tokens_B1
    return _load_balance(counts_BE, probability_BE)


def _squared_variation(x_E: Tensor) -> Tensor:
    return x_E.var(correction=0) / (x_E.mean().square() + 1e-10)
