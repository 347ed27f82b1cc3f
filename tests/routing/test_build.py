import pytest
import torch

from coterie.errors import ConfigError
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.routing import TopKRouter, build_router
from coterie.routing.topk import LimitedTopKRouter


def build(config: RouterConfig, top_k: int = 2, renormalise: bool = True) -> torch.nn.Module:
    return build_router(
        config, n_experts=4, width=6, top_k=top_k, renormalise=renormalise, new_tensor=lambda *shape: torch.ones(shape)
    )


def test_plain_top_k_is_the_plain_router_and_nothing_else() -> None:
    """The native pass knows it by its type."""
    assert type(build(RouterConfig())) is TopKRouter
    without = build(RouterConfig(kind="topk_all"))
    assert type(without) is TopKRouter and not without.renormalise
    assert type(build(RouterConfig(capacity=1.0))) is type(build(RouterConfig(jitter=0.1))) is LimitedTopKRouter


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_tensors_are_those_that_files_hold(kind: str) -> None:
    config = RouterConfig(kind=kind, slots=3 if kind == "soft" else 1)
    router = build(config, config.top_k_for(4, 2))
    held = {name: tuple(t.shape) for name, t in router.state_dict().items()}
    assert held == {name or "weight": shape for name, shape in config.tensor_shapes(4, 6).items()}
    assert router.kind == ("topk" if kind == "topk_all" else kind)


def test_wrong_numbers_of_experts() -> None:
    with pytest.raises(ConfigError, match="'gshard' sends each token to 2 of 4"):
        build(RouterConfig(kind="gshard"), 3)


def test_a_limited_router_in_use_is_the_plain_one() -> None:
    x_TD = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    limited, plain = build(RouterConfig(capacity=0.5, jitter=0.2)), build(RouterConfig())
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for router in (limited, plain):
        router.weight.data = weight
    limited.eval()
    for a, b in zip(limited(x_TD)[:3], plain(x_TD)[:3], strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(limited.train()(x_TD).ids_TK, plain(x_TD).ids_TK)
