import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.request import SamplingParams
from coterie.engine.sampling import Draw, choose, choose_greedy, uniform
from coterie.errors import CheckpointError, RequestError


def draw(
    prompt: list[int] | None = None, counts: dict[int, int] | None = None, seed: int = 0, **params: object
) -> Draw:
    return Draw(SamplingParams.of(params), seed, 0, prompt or [], counts or {})


def tokens(logits: list[float], n: int = 120, **params: object) -> list[int]:
    d = draw(**params)
    return [choose(torch.tensor(logits), d, position)[0] for position in range(n)]


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert choose_greedy(torch.tensor([[0.0, 2, 2], [3, 3, 3]])) == [1, 0]
    assert choose(torch.tensor([0.0, 2, 2]), draw(logprobs=0), 0)[0] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}])
def test_logits_that_are_not_finite_are_an_error(bad: float, params: dict[str, object]) -> None:
    logits = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(CheckpointError, match="not finite"):
        choose_greedy(logits[None])
    with pytest.raises(CheckpointError, match="not finite"):
        choose(logits, draw(**params), 0)


def test_the_repetition_penalty_counts_prompt_and_output() -> None:
    logits = torch.tensor([3.0, 2.0, -1.0, -1.1])
    assert choose(logits, draw([0], repetition_penalty=2.0), 0)[0] == 1  # 3 -> 1.5
    assert choose(logits, draw([0], {1: 1}, repetition_penalty=4.0), 0)[0] == 0  # 0.75 against 0.5
    assert choose(torch.tensor([-1.0, -1.5]), draw([0], repetition_penalty=2.0), 0)[0] == 1  # -1 -> -2


@pytest.mark.parametrize("penalty", [1e-300, 5e-324, 1e300])
def test_an_extreme_repetition_penalty_makes_no_nan(penalty: float) -> None:
    d = draw(prompt=[0, 1, 2], repetition_penalty=penalty, temperature=1.0)
    expected = {0, 1, 3} if penalty > 1 else {0, 1}
    assert {choose(torch.tensor([3.0, 2.0, -1e-3, 1.0]), d, p)[0] for p in range(60)} == expected


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = torch.tensor([2.0, 1.0])
    assert choose(logits, draw([0, 0, 0], presence_penalty=2.0, frequency_penalty=2.0), 0)[0] == 0
    assert choose(logits, draw([], {0: 1}, presence_penalty=1.5), 0)[0] == 1
    assert choose(logits, draw([], {0: 1}, frequency_penalty=0.6), 0)[0] == 0  # 1.4 against 1
    assert choose(logits, draw([], {0: 2}, frequency_penalty=0.6), 0)[0] == 1  # 0.8 against 1


def test_bias_forces_and_forbids() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    assert choose(logits, draw(logit_bias={2: 100}), 0)[0] == 2
    assert choose(logits, draw(logit_bias={0: -100}), 0)[0] == 1


def test_sampling_follows_the_distribution() -> None:
    found = tokens([math.log(0.7), math.log(0.2), math.log(0.1)], n=1000, temperature=1.0)
    assert [found.count(i) / 1000 for i in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


def test_temperature_sharpens_and_flattens() -> None:
    assert set(tokens([1.0, 0.0], temperature=1e-30)) == {0}
    assert tokens([1.0, 0.0], temperature=0.2).count(0) > tokens([1.0, 0.0], temperature=5.0).count(0)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.7}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.49}, {0, 1}),  # of three: 0.44, 0.33, 0.22
        ({"typical_p": 0.2}, {1}),  # 1.20 nats are nearest to the entropy of 1.28
        ({"typical_p": 0.6}, {0, 1, 2}),  # then 1.61, and 0.92 makes it reach
        ({"typical_p": 0.4}, {1, 2}),
        ({"top_k": 2, "typical_p": 0.4}, {0}),  # of two: 0.56 nats and 0.85, entropy 0.68
    ],
)
def test_filters_keep_what_they_say(params: dict[str, object], left: set[int]) -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert set(tokens(logits, temperature=1.0, **params)) == left


def test_filters_of_a_large_vocabulary_are_those_of_a_whole_sort() -> None:
    """They sort no more than what can be chosen."""
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(5000, generator=generator) * 3).round(decimals=1)  # many are equal
    order = logits.sort(descending=True, stable=True).indices.tolist()
    prob = logits.double().softmax(0)
    for p in (0.1, 0.5, 0.9, 0.999):
        total, kept = 0.0, []
        for i in order:
            if total >= p:
                break
            kept.append(i)
            total += float(prob[i])
        seen = {choose(logits, draw(temperature=1.0, top_p=p), position)[0] for position in range(200)}
        assert seen <= set(kept)
    for k in (1, 7, 300):
        seen = {choose(logits, draw(temperature=9.0, top_k=k), position)[0] for position in range(200)}
        assert seen <= set(order[:k])
    _, lp = choose(logits, draw(logprobs=20), 0)
    assert lp is not None and [i for i, _ in lp.top] == order[:20]


class OnlyThese:
    """A fake matcher."""

    is_done = False

    def __init__(self, *allowed: int):
        self.allowed = allowed

    def mask_(self, logits_V: torch.Tensor) -> None:
        kept = logits_V[list(self.allowed)]
        logits_V[:] = -math.inf
        logits_V[list(self.allowed)] = kept

    def accept(self, token_id: int) -> None: ...


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}])
def test_a_grammar_forbids_and_logprobs_stay_raw(params: dict[str, object]) -> None:
    logits = torch.tensor([math.log(p) for p in (0.7, 0.2, 0.1)])
    d = draw(logprobs=1, **params)
    d.matcher = OnlyThese(1, 2)
    found = [choose(logits, d, position) for position in range(40)]
    assert {token for token, _ in found} == ({1, 2} if params else {1})
    assert all(lp is not None and lp.top[0][0] == 0 for _, lp in found)
    assert all(lp.logprob == pytest.approx(float(logits[token]), abs=1e-6) for token, lp in found)  # type: ignore[union-attr]


def test_min_tokens_forbids_what_ends_a_text() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0])
    d = draw(min_tokens=2)
    d.stop_ids = frozenset({0, 1})
    assert [choose(logits, d, position)[0] for position in range(3)] == [2, 2, 0]
    d.matcher = OnlyThese(0)
    with pytest.raises(RequestError, match="only lets the text end"):
        choose(logits, d, 0)
    assert choose(logits, d, 2)[0] == 0


def test_top_k_among_equals_keeps_the_lowest_ids() -> None:
    assert set(tokens([0.0, 0.0, 0.0], temperature=1.0, top_k=2)) == {0, 1}


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.tensor([math.log(p) for p in (0.5, 0.3, 0.2)])
    token, lp = choose(logits, draw(logit_bias={2: 100}, temperature=0.5, logprobs=2), 0)
    assert token == 2 and lp is not None and lp.token_id == 2
    assert lp.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [i for i, _ in lp.top] == [0, 1]
    assert [v for _, v in lp.top] == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)
    assert choose(logits, draw(logprobs=0), 0)[1].top == ()
    assert choose(logits, draw(temperature=1.0), 0)[1] is None


@settings(max_examples=50, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 127), st.integers(0, 1 << 30))
def test_random_numbers_are_a_function_of_their_place(seed: int, sample: int, position: int) -> None:
    u = uniform(seed, sample, position)
    assert 0 <= u < 1 and u == uniform(seed, sample, position)
    assert (
        len(
            {
                u,
                uniform(seed, sample, position + 1),
                uniform(seed, sample + 1, position),
                uniform(~seed, sample, position),
            }
        )
        == 4
    )


def test_random_numbers_are_uniform_and_the_same_everywhere() -> None:
    found = torch.tensor([uniform(1, 0, i) for i in range(1000)])
    assert abs(found.mean() - 0.5) < 0.02 and abs(found.var() - 1 / 12) < 0.005
    assert uniform(7, 0, 0) == uniform(7, 0, 0) != uniform(8, 0, 0)
