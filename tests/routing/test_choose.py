import pytest
import torch

from coterie.kernels import router_logits
from coterie.routing.choose import best, softmax_at, within_capacity


def test_room_by_position() -> None:
    """The example of the docstring, and slots token by token, the first choice of each before its second."""
    assert within_capacity(torch.tensor([[0], [0], [0], [1]]), 2, 1.0).tolist() == [[True], [True], [False], [True]]
    ids = torch.tensor([[0, 1], [0, 1], [1, 0], [-1, 0]])
    assert within_capacity(ids, 2, 0.5).tolist() == [[True, True], [True, True], [False, False], [False, False]]


def test_room_by_probability() -> None:
    score = torch.tensor([[0.2], [0.9], [0.5], [0.1]])
    fits = within_capacity(torch.tensor([[0], [0], [0], [1]]), 2, 1.0, score)
    assert fits.tolist() == [[False], [True], [True], [True]]


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.25, 100.0])
def test_no_expert_gets_more_than_its_room(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.rand(50, 8, generator=generator).argsort(1)[:, :2]
    fits = within_capacity(ids, 8, factor)
    room = max(1, -(-int(factor * 10_000 * 100) // 80_000))
    counts = torch.bincount(ids[fits], minlength=8)
    assert counts.max() <= room
    assert fits.all() == (torch.bincount(ids.flatten(), minlength=8).max() <= room)


def test_padding_takes_no_room_and_keeps_its_slots() -> None:
    mask = torch.tensor([False, True, True, False])
    fits = within_capacity(torch.tensor([[0], [0], [0], [0]]), 2, 1.0, mask_T=mask)
    assert fits.tolist() == [[True], [True], [False], [True]]


def test_best_and_its_weights() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert best(scores, 3).tolist() == [[1, 2, 0]]
    torch.testing.assert_close(softmax_at(scores, best(scores, 2), True), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(softmax_at(scores, best(scores, 2), False), scores.softmax(1)[:, [1, 2]])


def test_logits_have_the_type_of_the_weight() -> None:
    x, weight = torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(4, 3)
    assert router_logits(x, weight).dtype == torch.float32
    assert router_logits(x, weight.double()).dtype == torch.float64
