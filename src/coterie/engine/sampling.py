"""From logits to the next token.

The order: repetition penalty (tokens of prompt and output), presence and frequency penalties (of the output), logit
bias, then either the argmax (temperature 0, ties to the lowest id) or temperature, top-k, top-p, min-p, and a draw.
Log-probabilities are those of the raw logits, before all of that. Top-p and min-p judge what the filter before them
left, made to sum to 1. A random number belongs to (seed, sample, position), so neither the batch nor the order of work
changes a text. Shapes: B sequences, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from coterie.engine.request import SamplingParams
from coterie.errors import CheckpointError
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


def choose_greedy(logits_BV: Tensor) -> list[int]:
    """The argmax of each row, the lowest id where logits are equal."""
    best_B, ids_B = argmax(logits_BV)
    for value in best_B.tolist():
        if not math.isfinite(value):
            raise _broken()
    ids: list[int] = ids_B.tolist()
    return ids


def choose(logits_V: Tensor, draw: Draw, position: int) -> tuple[int, TokenLogprob | None]:
    """The next token of one sequence, and its log-probabilities if asked for. `position` counts the output tokens."""
    p = draw.params
    raw_V = logits_V.float().cpu()
    if not math.isfinite(raw_V.max().item()):
        raise _broken()
    logits_V = _adjusted(raw_V, draw) if p.changes_logits else raw_V
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


def _drawn(logits_V: Tensor, p: SamplingParams, u: float) -> int:
    """The token whose stretch of the cumulative distribution (by rank where a filter needs ranks, else by id) has u."""
    ids_V: Tensor | None = None
    if p.top_k or p.top_p < 1:
        logits_V, ids_V = logits_V.sort(descending=True, stable=True)
        logits_V = logits_V[: p.top_k] if p.top_k else logits_V
    prob_V = ((logits_V.double() - logits_V.max()) / p.temperature).softmax(0)
    if p.top_p < 1:
        before_V = prob_V.cumsum(0) - prob_V
        prob_V = prob_V[: max(1, int((before_V < p.top_p).sum()))]
    if p.min_p:
        prob_V = prob_V.where(prob_V >= p.min_p * prob_V.max(), 0.0)
    total_V = prob_V.cumsum(0)
    place = int(torch.searchsorted(total_V, u * total_V[-1], right=True))
    place = min(place, int(prob_V.nonzero()[-1]))  # where rounding puts u at the very end
    return place if ids_V is None else int(ids_V[place])


def _logprob(raw_V: Tensor, token: int, n_top: int) -> TokenLogprob:
    logprob_V = raw_V.log_softmax(0)
    values, ids = logprob_V.sort(descending=True, stable=True)
    top = tuple(zip(ids[:n_top].tolist(), values[:n_top].tolist(), strict=True))
    return TokenLogprob(token, float(logprob_V[token]), top)


def _broken() -> CheckpointError:
    return CheckpointError(
        "the model's logits are not finite: its weights hold NaN or infinity, or overflow their dtype; "
        "check them with 'coterie verify' or load with dtype 'float32'"
    )
