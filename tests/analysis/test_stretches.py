"""The sample of a simulation: what counts, counts once; what leads, follows on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.stretches import take_sample


@pytest.fixture
def trace(plant: Callable[..., Any]) -> Any:
    """10,000 tokens whose expert says where they are: token t has expert t % 1000."""
    return plant(np.arange(10_000).reshape(-1, 1, 1) % 1000, n_experts=1000)


def test_the_example_of_the_docstring(trace: Any) -> None:
    sample = take_sample(trace, 4096, lead=512)
    assert sample.experts_SNLK.shape == (1536, 4, 1, 1) and sample.n_tokens == 4096
    firsts = [int(sample.token_SN[sample.is_counted_SN[:, n], n][0]) for n in range(4)]
    assert firsts == [0, 2500, 5000, 7500]
    assert (sample.token_SN[:512, 0] == -1).all() and sample.token_SN[0, 1] == 2500 - 512


def test_each_place_holds_its_token(trace: Any) -> None:
    sample = take_sample(trace, 5000, lead=100)
    there = sample.token_SN >= 0
    assert (sample.experts_SNLK[..., 0, 0][there] == sample.token_SN[there] % 1000).all()
    assert (sample.experts_SNLK[~there] == -1).all() and not sample.is_counted_SN[~there].any()


@pytest.mark.parametrize("n_tokens", [1, 1023, 4096, 9_999, 10_000, 10**9])
def test_no_token_counts_twice(trace: Any, n_tokens: int) -> None:
    sample = take_sample(trace, n_tokens)
    counted = sample.token_SN[sample.is_counted_SN]
    assert len(np.unique(counted)) == len(counted) == sample.n_tokens
    assert sample.n_tokens == pytest.approx(min(n_tokens, 10_000), rel=0.01)


def test_a_short_trace_is_one_stretch_without_a_lead(plant: Callable[..., Any]) -> None:
    sample = take_sample(plant(np.zeros((5, 2, 1))), 100)
    assert sample.experts_SNLK.shape == (5, 1, 2, 1) and sample.is_counted_SN.all()
    assert (sample.n_tokens, sample.n_layers, sample.top_k) == (5, 2, 1)


def test_no_stretch_is_longer_than_may_be(trace: Any) -> None:
    sample = take_sample(trace, 5000, lead=256, longest=300)
    assert sample.experts_SNLK.shape[:2] == (295 + 256, 17) and sample.n_tokens == pytest.approx(5000, abs=17)
