from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.routing.balance import expert_counts, update_bias
from coterie.routing.measures import max_violation


def test_the_bias_chooses_and_does_not_weigh(make_router: Callable, x_TD: Tensor) -> None:
    router = make_router("sigmoid_bias")
    router.bias.copy_(torch.tensor([10.0, 0, 0, 5.0]))
    routing = router(x_TD)
    assert (routing.ids_TK == torch.tensor([0, 3])).all()
    score = (x_TD @ router.weight.T).sigmoid()[:, [0, 3]]
    torch.testing.assert_close(routing.weights_TK, score / score.sum(1, keepdim=True))


def test_scale_is_what_the_weights_add_up_to(make_router: Callable, x_TD: Tensor) -> None:
    routing = make_router("sigmoid_bias", scale=2.5)(x_TD)
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.full((12,), 2.5, dtype=torch.float64))


def test_the_bias_follows_the_load(make_router: Callable) -> None:
    """By one step towards the mean load, recentred: loads 6, 2, 2, 2 of mean 3 are -1, 1, 1, 1 less their mean."""
    router = make_router("sigmoid_bias")
    update_bias(router, torch.tensor([6.0, 2, 2, 2]), 0.1)
    assert router.bias.tolist() == pytest.approx([-0.15, 0.05, 0.05, 0.05])


def test_updates_even_out_a_skewed_load(make_router: Callable) -> None:
    router = make_router("sigmoid_bias", top_k=2)
    with torch.no_grad():
        router.weight[0] += 0.5
    x_TD = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    before = max_violation(expert_counts(router(x_TD)))
    for _ in range(400):
        update_bias(router, expert_counts(router(x_TD)), 1e-2)
    assert before > 0.5 > 0.15 > max_violation(expert_counts(router(x_TD)))
    assert abs(router.bias.mean().item()) < 1e-6
