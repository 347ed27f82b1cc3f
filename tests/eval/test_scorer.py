import random
from collections.abc import Callable, Sequence

import pytest
import torch

from coterie.engine.runner import Runner
from coterie.engine.score import score as score_one_context
from coterie.errors import CheckpointError, ContextError
from coterie.eval import scorer as module
from coterie.eval.scorer import Pair, Scorer, fit
from coterie.model import Output, Transformer


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Transformer]) -> Transformer:
    return make_model(vocab_size=32, max_position_embeddings=2048)


def pairs_of(n: int, longest: int, seed: int = 0) -> list[Pair]:
    """Contexts that begin alike, up to `longest` tokens, with one to four continuations."""
    draw = random.Random(seed)
    base = [1, *(draw.randrange(3, 32) for _ in range(longest))]
    found: list[Pair] = []
    for _ in range(n):
        context = base[: draw.randrange(1, longest)] + [draw.randrange(3, 32) for _ in range(draw.randrange(9))]
        for _ in range(draw.randrange(1, 5)):
            found.append((context, [draw.randrange(3, 32) for _ in range(draw.randrange(1, 12))]))
    return found


def one_at_a_time(model: Transformer, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    return [score_one_context(Runner(model), context, [ids])[0] for context, ids in pairs]


def check(model: Transformer, pairs: Sequence[Pair]) -> Scorer:
    scorer = Scorer(model)
    found, expected = scorer.score(pairs), one_at_a_time(model, pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [lp for lp, _ in found] == pytest.approx([lp for lp, _ in expected], abs=1e-4)
    return scorer


def test_many_contexts_in_one_go_are_each_alone(model: Transformer) -> None:
    scorer = check(model, pairs_of(40, 60))
    assert scorer.n_read < scorer.n_asked / 3


def test_texts_longer_than_a_pass(model: Transformer) -> None:
    check(model, pairs_of(4, 1400, seed=1))


def test_with_a_sliding_window(make_model: Callable[..., Transformer]) -> None:
    check(make_model(vocab_size=32, sliding_window=16), pairs_of(20, 60, seed=2))


def test_with_room_for_one_text_at_a_time(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_BYTES", 1)
    check(model, pairs_of(20, 60, seed=3))


def test_greedy_continuations_are_found(model: Transformer) -> None:
    with torch.inference_mode():
        context = [1, 5, 9]
        for _ in range(4):
            *_, last = Runner(model).feed_all(0, context)
            context.append(int(model.head(last.hidden_TD[-1:]).argmax()))
    best = context[3:]
    other = [*best[:-1], (best[-1] + 1) % 32]
    assert [greedy for _, greedy in Scorer(model).score([(context[:3], best), (context[:3], other)])] == [True, False]


def test_shots_before_many_questions_are_read_once(model: Transformer) -> None:
    """The form of MMLU: long shots, a short question, four letters of one token."""
    shots = [1, *(3 + n % 20 for n in range(300))]
    pairs = [([*shots, 3 + n, 4 + n, 5], [letter]) for n in range(8) for letter in (25, 26, 27, 28)]
    scorer = Scorer(model)
    scorer.score(pairs)
    assert scorer.n_asked == 32 * 304
    assert scorer.n_read == 301 + 8 * 3


def test_a_context_before_long_continuations_is_read_once(model: Transformer) -> None:
    context = [1, *(3 + n % 20 for n in range(99))]
    scorer = Scorer(model)
    scorer.score([(context, [20 + n, 5, 6]) for n in range(4)])
    assert scorer.n_read == 100 + 4 * 2 and scorer.n_asked == 4 * 102


def test_each_answer_is_told_of_once_as_soon_as_it_is_known(model: Transformer) -> None:
    pairs = pairs_of(10, 40, seed=4)
    told: dict[int, tuple[float, bool]] = {}

    def done(pair: int, logprob: float, greedy: bool) -> None:
        assert pair not in told
        told[pair] = logprob, greedy

    found = Scorer(model).score(pairs, done=done)
    assert [told[place] for place in range(len(pairs))] == found


def test_what_is_seen_is_every_token_read_with_its_routing(model: Transformer) -> None:
    seen: list[tuple[list[int], Output, int, int]] = []
    pairs = [([1, *range(3, 20)], [n]) for n in (5, 6)] + [([1, *range(3, 20), 7], [8, 9])]
    scorer = Scorer(model)
    scorer.score(pairs, seen=lambda ids, output, *place: seen.append((list(ids), output, *place)))
    assert sum(len(ids) for ids, *_ in seen) == scorer.n_read
    for ids, output, pair, position in seen:
        text = [*pairs[pair][0], *pairs[pair][1][:-1]]
        assert len(output.hidden_TD) == len(ids) and ids == text[position : position + len(ids)]
        assert all(len(routing.ids_TK) == len(ids) for routing in output.routings)


def test_nothing_asked_is_nothing_answered(model: Transformer) -> None:
    assert Scorer(model).score([]) == []


def test_logits_that_are_not_numbers_are_refused(make_model: Callable[..., Transformer]) -> None:
    model = make_model(vocab_size=32)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "norm" in name).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not numbers"):
        Scorer(model).score([([1, 5], [6])])


def test_a_context_loses_its_beginning_where_it_is_too_long() -> None:
    # 5 tokens of context: the last token of the continuation is predicted, not read, so 6 fit together
    assert fit([1, 2, 3, 4], [5, 6], 5) == ([1, 2, 3, 4], False)
    assert fit([1, 2, 3, 4], [5, 6, 7], 5) == ([2, 3, 4], True)
    assert fit([1, 2], [3, 4, 5, 6, 7], 5) == ([2], True)
    with pytest.raises(ContextError, match="6 tokens"):
        fit([1], [2, 3, 4, 5, 6, 7], 5)
