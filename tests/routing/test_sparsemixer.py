"""The gradient that SparseMixer estimates, against exact enumeration of what may be drawn.

One token, and a loss f(w · v_e) of the drawn expert's number v_e; what is wanted is the gradient of Σ p_e f(p_e v_e).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.routing import Rows
from coterie.routing.sparsemixer import draw, without_far_ones

VALUES = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)
LOGITS = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)  # close enough for every one to be drawn at epsilon 0.1
DRAWS = 40_000

Loss = Callable[[Tensor], Tensor]


def estimate(
    router: torch.nn.Module, logits_E: Tensor, loss: Loss, slots: slice = slice(0, 1)
) -> tuple[Tensor, Tensor]:
    """Mean gradient with respect to the logits over many draws, and its standard error."""
    router.weight.data = logits_E[:, None].clone()  # the token is the number 1
    x = torch.ones(DRAWS, 1, dtype=torch.float64)
    rows = Rows(generator=torch.Generator().manual_seed(5))
    weight = logits_E[None, :, None].repeat(DRAWS, 1, 1).requires_grad_()  # a router each, to see each draw's gradient
    routing = _route(router, x, weight, rows)
    outputs = routing[1][:, slots] * VALUES[routing[0].long()[:, slots]]
    (gradient,) = torch.autograd.grad(loss(outputs).sum(), weight)
    gradient = gradient.squeeze(-1)
    return gradient.mean(0), gradient.std(0) / DRAWS**0.5


def _route(router: torch.nn.Module, x: Tensor, weight: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    logits = (weight @ x.unsqueeze(-1)).squeeze(-1)
    ids, weights, _ = router.choose(x, logits, rows)
    return ids, weights


def of_expectation(logits_E: Tensor, loss: Loss) -> Tensor:
    """The gradient of Σ p_e f(p_e v_e)."""
    logits = logits_E.clone().requires_grad_()
    p = logits.softmax(-1)
    (gradient,) = torch.autograd.grad((p * loss(p * VALUES)).sum(), logits)
    return gradient


def of_draw(logits_E: Tensor, loss: Loss) -> Tensor:
    """The part of it that knows of the draw alone: Σ f(w_e v_e) dp_e, weights held fixed."""
    logits = logits_E.clone().requires_grad_()
    p = logits.softmax(-1)
    (gradient,) = torch.autograd.grad((p * loss(p.detach() * VALUES)).sum(), logits)
    return gradient


def make(make_router: Callable, kind: str, top_k: int = 1) -> torch.nn.Module:
    return make_router(kind, top_k=top_k).train()


@pytest.fixture
def v1(make_router: Callable) -> torch.nn.Module:
    router = make(make_router, "sparsemixer")
    torch.nn.init.ones_(router.omega)
    return router


@pytest.fixture
def v2(make_router: Callable) -> torch.nn.Module:
    return make(make_router, "sparsemixer_v2")


def close(found: tuple[Tensor, Tensor], exact: Tensor, slack: float = 0.0) -> bool:
    mean, error = found
    return bool(((mean - exact).abs() <= 4 * error + slack).all()) and float(error.max()) < 0.05


def test_v1_is_exact_for_linear_losses(v1: torch.nn.Module) -> None:
    assert close(estimate(v1, LOGITS, lambda y: 3 * y), of_expectation(LOGITS, lambda y: 3 * y))


def test_v2_is_exact_for_linear_losses(v2: torch.nn.Module) -> None:
    assert close(estimate(v2, LOGITS, lambda y: 3 * y), of_draw(LOGITS, lambda y: 3 * y))


def test_v1_knows_quadratic_losses_but_for_the_best_expert(v1: torch.nn.Module) -> None:
    """The mid-point rule is exact for them; the best expert's own draw is taken as if the loss were linear."""

    def loss(y: Tensor) -> Tensor:
        return y.square()

    p, best = LOGITS.softmax(-1), int(LOGITS.argmax())
    one_hot = torch.eye(3, dtype=torch.float64)[best]
    w, v = p[best], VALUES[best]
    missed = p[best] * (one_hot - p) * (2 * w * w * v * v - (w * v) ** 2)  # w · slope(w) instead of f(w) - f(0)
    assert close(estimate(v1, LOGITS, loss), of_expectation(LOGITS, loss) + missed)


def test_v2_knows_cubic_losses_but_for_the_best_expert(v2: torch.nn.Module) -> None:
    def loss(y: Tensor) -> Tensor:
        return y**3 - 0.5 * y.square() + y

    def slope(y: Tensor) -> Tensor:
        return 3 * y.square() - y + 1

    p, best = LOGITS.softmax(-1), int(LOGITS.argmax())
    one_hot = torch.eye(3, dtype=torch.float64)[best]
    y = p[best] * VALUES[best]
    missed = p[best] * (one_hot - p) * (y * slope(y) - loss(y))
    assert close(estimate(v2, LOGITS, loss), of_draw(LOGITS, loss) + missed)


def test_the_second_expert_of_v2_is_drawn_from_the_others(make_router: Callable) -> None:
    """For a linear loss: E over first draws of the gradient of Σ q_j v_j, q the probabilities without the first."""
    exact = torch.zeros(3, dtype=torch.float64)
    for first, p in enumerate(LOGITS.softmax(-1).tolist()):
        logits = LOGITS.clone().requires_grad_()
        q = logits.masked_fill(torch.arange(3) == first, -torch.inf).softmax(-1)
        (gradient,) = torch.autograd.grad((q * (q.detach() * VALUES)).sum(), logits)
        exact += p * gradient
    assert close(estimate(make(make_router, "sparsemixer_v2", 2), LOGITS, lambda y: y, slice(1, 2)), exact)


@pytest.mark.parametrize("kind", ["sparsemixer", "sparsemixer_v2"])
def test_draws_follow_the_softmax(kind: str, make_router: Callable) -> None:
    ids = draw(LOGITS.repeat(DRAWS, 1), torch.Generator().manual_seed(0))
    share = torch.bincount(ids.flatten(), minlength=3) / DRAWS
    torch.testing.assert_close(share.double(), LOGITS.softmax(-1), rtol=0, atol=0.01)


def test_experts_far_below_the_best_are_never_drawn() -> None:
    """(max - s) / max(|s|, max) of 1, 0.85, 0.5, -2 with max 1: 0, 0.15, 0.5, 1.5; epsilon 0.1 keeps up to 0.2."""
    near = without_far_ones(torch.tensor([[1.0, 0.85, 0.5, -2.0]]), 0.1)
    assert near.isfinite().tolist() == [[True, True, False, False]]
    assert without_far_ones(torch.zeros(1, 4), 0.1).isfinite().all()


def test_in_use_the_best_is_taken_with_its_probability_among_the_near(v1: torch.nn.Module) -> None:
    v1.eval().weight.data = torch.tensor([[1.0], [0.9], [0.1]], dtype=torch.float64)
    routing = v1(torch.ones(1, 1, dtype=torch.float64))
    assert routing.ids_TK.tolist() == [[0]]
    assert routing.weights_TK.item() == pytest.approx(torch.tensor([1.0, 0.9]).softmax(0)[0].item())
