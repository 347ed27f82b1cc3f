import math

import pytest
import torch

from coterie.routing import Assignment
from coterie.routing.balance import expert_counts, load_balancing_loss, z_loss


def routing(ids: list[list[int]], logits: torch.Tensor) -> Assignment:
    ids_TK = torch.tensor(ids, dtype=torch.int32)
    return Assignment(ids_TK, torch.ones(ids_TK.shape), logits, {})


def test_counts_leave_out_unused_slots_and_padding() -> None:
    r = routing([[0, 2], [2, -1], [1, 2]], torch.zeros(3, 4))
    assert expert_counts(r).tolist() == [1, 1, 3, 0]
    assert expert_counts(r, torch.tensor([True, True, False])).tolist() == [1, 0, 2, 0]


def test_balanced_routing_has_loss_one_whatever_k() -> None:
    assert load_balancing_loss(routing([[0, 1], [2, 3]], torch.zeros(2, 4))).item() == pytest.approx(1.0)
    assert load_balancing_loss(routing([[0], [1], [2], [3]], torch.zeros(4, 4))).item() == pytest.approx(1.0)


def test_collapsed_routing_has_loss_e_over_k() -> None:
    """All tokens to experts 0 and 1 of 8 with all the probability there: 8 · (½·½ + ½·½) = 4 = E/K."""
    logits = torch.full((5, 8), -100.0)
    logits[:, :2] = 0.0
    assert load_balancing_loss(routing([[0, 1]] * 5, logits)).item() == pytest.approx(4.0)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    ids = logits.topk(2).indices.tolist()
    mask = torch.tensor([True] * 4 + [False] * 2)
    for loss in (load_balancing_loss, z_loss):
        whole = loss(routing(ids[:4], logits[:4]))
        assert loss(routing(ids, logits), mask).item() == pytest.approx(whole.item())


def test_gradient_pushes_the_busy_expert_down() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 4, requires_grad=True)
    load_balancing_loss(routing([[0]] * 4, logits)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_z_loss_of_equal_logits_is_the_squared_log_of_their_number() -> None:
    assert z_loss(routing([[0]], torch.zeros(1, 8))).item() == pytest.approx(math.log(8) ** 2)
