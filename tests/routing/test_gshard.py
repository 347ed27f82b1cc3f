from collections.abc import Callable

import torch

from coterie.routing import Rows


def test_the_second_expert_is_kept_as_often_as_twice_its_weight(make_router: Callable) -> None:
    """Weights 0.8 and 0.2 of the two best: kept in 40 % of the draws; the first keeps 0.8 all the same."""
    router = make_router("gshard").train()
    router.weight.data = torch.tensor([[0.8], [0.2], [0.01], [0.01]], dtype=torch.float64).log()
    x_TD = torch.ones(20_000, 1, dtype=torch.float64)
    routing = router(x_TD, Rows(generator=torch.Generator().manual_seed(0)))
    is_kept_T = routing.ids_TK[:, 1] >= 0
    assert abs(is_kept_T.double().mean().item() - 0.4) < 0.015
    torch.testing.assert_close(routing.weights_TK[:, 0], torch.full((20_000,), 0.8, dtype=torch.float64))
    torch.testing.assert_close(routing.weights_TK[:, 1], 0.2 * is_kept_T.double())
    assert (router.eval()(x_TD).ids_TK == torch.tensor([0, 1])).all()
