from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coterie.router_config import RouterConfig
from coterie.routing import Rows, build_router
from coterie.routing.balance import load_loss


def test_noise_is_of_training_alone_and_from_the_generator(
    make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    router = make_router("noisy_topk")
    first, second = router(x_TD, rows_for(x_TD)), router(x_TD, rows_for(x_TD))
    other = router(x_TD, rows_for(x_TD, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(first.weights_TK, second.weights_TK) and not torch.equal(first.weights_TK, other.weights_TK)
    assert torch.equal(first.logits_TE, other.logits_TE) and "load" in first.losses
    router.eval()
    quiet = router(x_TD, rows_for(x_TD))
    logits_TE = x_TD @ router.weight.T
    torch.testing.assert_close(quiet.weights_TK, logits_TE.topk(2).values.softmax(-1))
    assert quiet.losses == {}


@pytest.mark.parametrize("training", [True, False])
def test_one_expert_weighs_what_it_has_of_all_where_nothing_is_renormalised(
    training: bool, x_TD: Tensor, rows_for: Callable
) -> None:
    """The weight was 1 and the router got no gradient, whatever norm_topk_prob said."""
    generator = torch.Generator().manual_seed(1)
    router = build_router(
        RouterConfig(kind="noisy_topk"), n_experts=4, width=6, top_k=1, renormalise=False,
        new_tensor=lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64),
    ).train(training)  # fmt: skip
    weights_TK = router(x_TD, rows_for(x_TD)).weights_TK
    if not training:
        torch.testing.assert_close(weights_TK[:, 0], (x_TD @ router.get_parameter("weight").T).softmax(-1).amax(-1))
    weights_TK.sum().backward()
    gradient = router.get_parameter("weight").grad
    assert gradient is not None and gradient.abs().max() > 1e-3


def test_the_load_is_the_chance_to_be_chosen_again(make_router: Callable) -> None:
    """Against counting: redraw the noise of one expert while the others keep theirs."""
    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    std_TE = functional.softplus(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    noisy_TE = logits_TE + std_TE * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    n = 40_000
    chance_TE = torch.empty(3, 4, dtype=torch.float64)
    for e in range(4):
        again = noisy_TE.repeat(n, 1, 1)
        again[:, :, e] = logits_TE[:, e] + std_TE[:, e] * torch.randn(n, 3, generator=generator, dtype=torch.float64)
        chance_TE[:, e] = (again.topk(2).indices == e).any(-1).double().mean(0)
    load_E = chance_TE.sum(0)
    expected = load_E.var(correction=0) / load_E.mean() ** 2
    assert load_loss(logits_TE, noisy_TE, std_TE, 2).item() == pytest.approx(expected.item(), abs=0.01)
    assert load_loss(logits_TE, noisy_TE, std_TE, 4).item() == 0


def test_a_generator_of_none_is_torchs_own(make_router: Callable, x_TD: Tensor) -> None:
    router = make_router("noisy_topk")
    torch.manual_seed(1)
    first = router(x_TD, Rows())
    torch.manual_seed(1)
    assert torch.equal(router(x_TD).weights_TK, first.weights_TK)
