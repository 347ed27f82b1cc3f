"""From logits to the next token.

The order: repetition penalty (tokens of prompt and output), presence and frequency penalties (of the output), logit
bias, what a grammar or `min_tokens` forbids, then either the argmax (temperature 0, ties to the lowest id) or
temperature, top-k, top-p, min-p, typical-p, and a draw. Log-probabilities are those of the raw logits, before all of
that. Each filter judges what the one before it left, made to sum to 1. A random number belongs to (seed, sample,
position), so neither the batch nor the order of work changes a text. Shapes: B sequences, V vocabulary.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from coterie.engine.constraint import Matcher
from coterie.engine.request import SamplingParams
from coterie.errors import CheckpointError, RequestError
from coterie.kernels import argmax

__all__ = ["Draw", "TokenLogprob", "choose", "choose_greedy", "uniform"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms. `top` are the most likely tokens at that place, best first, as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Draw:
    """What choosing needs to know of one sequence."""

    params: SamplingParams
    seed: int
    sample: int
    prompt_ids: Sequence[int]
    counts: dict[int, int] = field(default_factory=dict)  # output tokens so far
    stop_ids: Collection[int] = ()  # what `min_tokens` forbids
    matcher: Matcher | None = None


def choose_greedy(logits_BV: Tensor) -> list[int]:
    """The argmax of each row, the lowest id where logits are equal."""
    best_B, ids_B = argmax(logits_BV)
    if not logits_BV.is_cpu:  # one wait for the card, not two
        best_B, ids_B = torch.stack((best_B.double(), ids_B.double())).cpu()
    for value in best_B.tolist():
        if not math.isfinite(value):
            raise _broken()
    ids: list[int] = ids_B.long().tolist()
    return ids


def choose(logits_V: Tensor, draw: Draw, position: int) -> tuple[int, TokenLogprob | None]:
    """The next token of one sequence, and its log-probabilities if asked for. `position` counts the output tokens."""
    p = draw.params
    raw_V = logits_V.float().cpu()
    if not math.isfinite(raw_V.max().item()):
        raise _broken()
    logits_V = _adjusted(raw_V, draw) if p.changes_logits else raw_V
    if draw.matcher is not None or position < p.min_tokens:
        logits_V = _allowed(logits_V, draw, position)
    if p.temperature == 0:
        token = int(logits_V.max(0).indices)
    else:
        token = _drawn(logits_V, p, uniform(draw.seed, draw.sample, position))
    return token, None if p.logprobs is None else _logprob(raw_V, token, p.logprobs)


def uniform(seed: int, sample: int, position: int) -> float:
    """The random number in [0, 1) of that place: Philox-4x64 (Salmon et al., 2011), a counter and no state."""
    mask = (1 << 64) - 1
    key, counter = [seed & mask, sample], [position, 0, 0, 0]
    raw = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)).random_raw()
    return (int(raw) >> 11) * 2.0**-53


def _adjusted(raw_V: Tensor, draw: Draw) -> Tensor:
    """Penalties (repetition: arXiv 1909.05858, section 4.1; the others: OpenAI's definition) and bias."""
    p, logits_V = draw.params, raw_V.clone()
    if p.repetition_penalty != 1:
        seen = torch.tensor(sorted({*draw.prompt_ids, *draw.counts}))
        at = logits_V[seen]
        at = torch.where(at > 0, at / p.repetition_penalty, at * p.repetition_penalty)
        logits_V[seen] = at.clamp(max=torch.finfo(at.dtype).max)  # a tiny penalty must not make an infinity
    if draw.counts and (p.presence_penalty or p.frequency_penalty):
        ids, counts = torch.tensor(list(draw.counts)), torch.tensor(list(draw.counts.values()))
        logits_V[ids] -= p.presence_penalty + p.frequency_penalty * counts
    if p.logit_bias:
        logits_V[torch.tensor(list(p.logit_bias))] += torch.tensor(list(p.logit_bias.values()))
    return logits_V


def _allowed(logits_V: Tensor, draw: Draw, position: int) -> Tensor:
    """Minus infinity where `min_tokens` or the grammar forbids a token."""
    logits_V = logits_V.clone()
    if position < draw.params.min_tokens and draw.stop_ids:
        logits_V[torch.tensor(sorted(draw.stop_ids))] = -torch.inf
    if draw.matcher is not None:
        draw.matcher.mask_(logits_V)
    if logits_V.max() == -torch.inf:
        raise RequestError("no token may come next: the grammar only lets the text end, which min_tokens forbids")
    return logits_V


def _drawn(logits_V: Tensor, p: SamplingParams, u: float) -> int:
    """The token whose stretch of the cumulative distribution (by rank where a filter needs ranks, else by id) has u."""
    ids_N: Tensor | None = None
    if p.top_k and p.top_k < len(logits_V):
        ids_N = _largest(logits_V, p.top_k)
        logits_V = logits_V[ids_N]
    prob_N = ((logits_V.double() - logits_V.max()) / p.temperature).softmax(0)
    if p.top_p < 1:
        if ids_N is None:  # what is below this is less than 1 - top_p in all, so it need not be sorted
            ids_N = (prob_N >= (1 - p.top_p) / len(prob_N)).nonzero()[:, 0]
            prob_N, order = prob_N[ids_N].sort(descending=True, stable=True)
            ids_N = ids_N[order]
        before_N = prob_N.cumsum(0) - prob_N
        prob_N = prob_N[: max(1, int((before_N < p.top_p).sum()))]
    if p.min_p:
        prob_N = prob_N.where(prob_N >= p.min_p * prob_N.max(), 0.0)
    if p.typical_p < 1:
        prob_N = _typical(prob_N, p.typical_p)
    total_N = prob_N.cumsum(0)
    place = int(torch.searchsorted(total_N, u * total_N[-1], right=True))
    place = min(place, int(prob_N.nonzero()[-1]))  # where rounding puts u at the very end
    return place if ids_N is None else int(ids_N[place])


def _typical(prob_N: Tensor, mass: float) -> Tensor:
    """Those whose surprise is nearest to what is expected, up to this mass; 0 for others (arXiv 2202.00666)."""
    prob_N = prob_N / prob_N.sum()
    entropy = -torch.xlogy(prob_N, prob_N).sum()
    order_N = (-prob_N.log() - entropy).abs().argsort(stable=True)
    before_N = prob_N[order_N].cumsum(0) - prob_N[order_N]
    kept = order_N[: max(1, int((before_N < mass).sum()))]
    return torch.zeros_like(prob_N).index_copy_(0, kept, prob_N[kept])


def _largest(values_V: Tensor, k: int) -> Tensor:
    """The places of the k largest, best first, the lowest among equals; sorts no more than it must."""
    near = (values_V >= values_V.topk(k).values[-1]).nonzero()[:, 0]
    return near[values_V[near].sort(descending=True, stable=True).indices[:k]]


def _logprob(raw_V: Tensor, token: int, n_top: int) -> TokenLogprob:
    logprob_V = raw_V.log_softmax(0)
    ids = _largest(logprob_V, min(n_top, len(logprob_V))) if n_top else torch.empty(0, dtype=torch.int64)
    top = tuple(zip(ids.tolist(), logprob_V[ids].tolist(), strict=True))
    return TokenLogprob(token, float(logprob_V[token]), top)


def _broken() -> CheckpointError:
    return CheckpointError(
        "the model's logits are not finite: its weights hold NaN or infinity, or overflow their dtype; "
        "check them with 'coterie verify' or load with dtype 'float32'"
    )
