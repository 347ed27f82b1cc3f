"""How likely given continuations of one context are, reading the context once.

Text is cut into context and continuation as lm-eval does: spaces at the context's end move to the continuation, both
are encoded together, and what follows the context's own tokens is the continuation. Shapes: T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.engine.request import require_decoding
from coterie.engine.runner import CHUNK, Runner
from coterie.tokenizer import Tokenizer

__all__ = ["Score", "encode_pair", "score"]

_MOST_TOGETHER = 16  # continuations of one pass, each with its copy of the context's keys and values


@dataclass(frozen=True, slots=True)
class Score:
    """`logprob`: natural, summed over the continuation's tokens. `is_greedy`: each of them was the argmax."""

    logprob: float
    is_greedy: bool
    n_tokens: int
    n_bytes: int  # of the continuation's text in UTF-8


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of context, with one BOS, and of continuation."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces:
        context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
    context_ids = tokenizer.encode(context, bos=True)
    if not context_ids and tokenizer.eos_id is not None:  # no BOS to stand for an empty context
        return [tokenizer.eos_id], tokenizer.encode(continuation)
    joint = tokenizer.encode(context + continuation, bos=True)[len(context_ids) :]
    return context_ids, joint or tokenizer.encode(continuation)


@torch.inference_mode()
def score(
    runner: Runner, context_ids: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """(log-probability, is greedy) of each non-empty continuation of a non-empty context. Uses the slots from 0 on."""
    require_decoding(runner.model.config)
    runner.cache.clear(0)
    *_, last = runner.feed_all(0, context_ids)
    first_1V = runner.logits(last.hidden_TD[-1:])
    results: list[tuple[float, bool]] = []
    for group in _groups(continuations):
        for slot in range(1, len(group) + 1):
            runner.cache.reserve(slot + 1)
            runner.cache.copy(0, slot)
        results += _score_group(runner, first_1V, group)
    return results


def _score_group(runner: Runner, first_1V: Tensor, group: list[Sequence[int]]) -> list[tuple[float, bool]]:
    if len(group) == 1:
        pieces = [runner.logits(o.hidden_TD) for o in runner.feed_all(1, group[0][:-1])]
        return [_judge(torch.cat([first_1V, *pieces]), group[0])]
    work = [(slot, ids[:-1]) for slot, ids in enumerate(group, 1) if len(ids) > 1]
    rest_TV = runner.logits(runner.feed(work).hidden_TD) if work else first_1V[:0]
    parts = torch.split(rest_TV, [len(ids) - 1 for ids in group])
    return [_judge(torch.cat([first_1V, part]), ids) for part, ids in zip(parts, group, strict=True)]


def _judge(logits_TV: Tensor, ids: Sequence[int]) -> tuple[float, bool]:
    target_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    logprob = logits_TV.float().log_softmax(-1).gather(-1, target_T1).double().sum()
    return float(logprob), bool((logits_TV.argmax(-1, keepdim=True) == target_T1).all())


def _groups(continuations: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbours that fit one pass together."""
    group: list[Sequence[int]] = []
    n = 0
    for ids in continuations:
        if group and (n + len(ids) > CHUNK or len(group) == _MOST_TOGETHER):
            yield group
            group, n = [], 0
        group.append(ids)
        n += len(ids)
    if group:
        yield group
