from collections.abc import Callable

import torch

from coterie.router_config import RouterConfig
from coterie.routing import Rows, build_router
from coterie.routing.balance import expert_counts
from coterie.routing.measures import max_violation


def hash_router(layer: int = 0, n_experts: int = 8, top_k: int = 2) -> torch.nn.Module:
    return build_router(
        RouterConfig(kind="hash"), n_experts=n_experts, width=2, top_k=top_k, renormalise=True, new_tensor=torch.empty,
        layer=layer,
    )  # fmt: skip


def test_a_token_id_has_its_own_experts_in_each_layer() -> None:
    ids = torch.tensor([5, 9, 5, 31_999, 9])
    first = hash_router()(torch.randn(5, 2), Rows(ids))
    assert first.ids_TK[0].tolist() == first.ids_TK[2].tolist() and (first.weights_TK == 0.5).all()
    many = torch.arange(32_000)
    x_TD = torch.zeros(32_000, 2)
    layers = [hash_router(layer)(x_TD, Rows(many)).ids_TK for layer in (0, 1, 40)]
    for i, other in ((0, 1), (0, 2), (1, 2)):
        same = (layers[i][:, 0] == layers[other][:, 0]).double().mean().item()
        assert abs(same - 1 / 8) < 0.01
    for ids_TK in layers:
        assert (ids_TK[:, 0] != ids_TK[:, 1]).all()
        assert max_violation(torch.bincount(ids_TK.flatten()).float()) < 0.05


def test_a_random_router_draws_anew_and_in_use_goes_by_the_id(make_router: Callable) -> None:
    router = make_router("random").train()
    x_TD, rows = torch.zeros(4000, 6), Rows(torch.zeros(4000, dtype=torch.int64))
    assert max_violation(expert_counts(router(x_TD, rows))) < 0.1
    assert len(router.eval()(x_TD, rows).ids_TK.unique(dim=0)) == 1


def test_there_is_nothing_to_train() -> None:
    assert list(hash_router().parameters()) == [] and hash_router().state_dict() == {}
