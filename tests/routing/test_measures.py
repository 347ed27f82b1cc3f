import math

import pytest
import torch

from coterie.routing import Assignment
from coterie.routing.measures import drop_rate, idle_experts, load_entropy, max_violation


def test_even_load() -> None:
    even = torch.full((8,), 3.0)
    assert (max_violation(even), load_entropy(even), idle_experts(even)) == (0, pytest.approx(1), 0)


def test_collapse() -> None:
    all_to_one = torch.tensor([10.0, 0, 0, 0])
    assert (max_violation(all_to_one), load_entropy(all_to_one), idle_experts(all_to_one)) == (3, 0, 3)
    half = torch.tensor([5.0, 5.0, 0, 0])
    assert load_entropy(half) == pytest.approx(math.log(2) / math.log(4))


def test_nothing_routed() -> None:
    none = torch.zeros(4)
    assert (max_violation(none), load_entropy(none), idle_experts(none)) == (0, 1, 4)


def test_drop_rate_leaves_out_padding() -> None:
    ids = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    routing = Assignment(ids.int(), torch.ones(3, 2), torch.zeros(3, 4), {})
    assert drop_rate(routing) == 0.5
    assert drop_rate(routing, torch.tensor([True, True, False])) == 0.25
