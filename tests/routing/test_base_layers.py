import itertools

import pytest
import torch

from coterie.routing.base_layers import auction


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(6, 3), (7, 3), (8, 2)])
def test_the_auction_finds_the_best_assignment(seed: int, shape: tuple[int, int]) -> None:
    """Against all assignments, within what the precision promises."""
    T, E = shape
    scores = torch.randn(T, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    room = -(-T // E)
    best = max(
        sum(scores[t, e].item() for t, e in enumerate(ids))
        for ids in itertools.product(range(E), repeat=T)
        if max(map(ids.count, range(E))) <= room
    )
    ids = auction(scores, precision=1e-4, most=20_000)
    assert torch.bincount(ids, minlength=E).max() <= room
    assert scores.gather(1, ids[:, None]).sum().item() == pytest.approx(
        best, abs=T * 1e-4 * (scores.max() - scores.min()).item()
    )


@pytest.mark.parametrize("T", [64, 257])
def test_many_tokens_that_all_want_the_same(T: int) -> None:
    scores = torch.randn(T, 8, generator=torch.Generator().manual_seed(0))
    scores[:, 3] += 10
    ids = auction(scores)
    assert torch.bincount(ids, minlength=8).max() <= -(-T // 8)
    greedy = torch.cat([torch.full((-(-T // 8),), e) for e in range(8)])[:T]
    assert scores.gather(1, ids[:, None]).sum() > scores.gather(1, greedy[:, None]).sum()


def test_equal_scores_and_too_few_rounds_still_give_everyone_a_place() -> None:
    for ids in (auction(torch.zeros(10, 4)), auction(torch.randn(10, 4), most=1)):
        assert (ids >= 0).all() and torch.bincount(ids, minlength=4).max() <= 3
    assert auction(torch.zeros(0, 4)).shape == (0,) and auction(torch.randn(3, 1)).tolist() == [0, 0, 0]
