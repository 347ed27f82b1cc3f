from typing import Any

import pytest

from coterie.config import ModelConfig
from coterie.errors import ConfigError
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.sizes import active_parameters, parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "swich"}, r"router.kind is 'swich', expected one of topk, .*; did you mean 'switch'\?"),
        ({"kind": 3}, "router.kind is 3, expected a string"),
        ({"kind": "switch", "capacity": -1}, r"router.capacity is -1.0, expected .*0 \(no limit\)"),
        ({"kind": "switch", "capacity": float("nan")}, "router.capacity is nan, expected a finite number"),
        ({"kind": "soft", "capacity": 1.0}, "router.capacity is 1.0, expected 0 for the kind 'soft'"),
        ({"kind": "switch", "drop": "last"}, "router.drop is 'last', expected position or probability"),
        ({"kind": "switch", "drop": "probability"}, "router.drop is 'probability', expected a capacity beside it"),
        ({"jitter": 1.0}, "router.jitter is 1.0, expected from 0 to below 1"),
        ({"kind": "soft", "slots": 0}, "router.slots is 0, expected between 1"),
        ({"kind": "soft", "slots": True}, "router.slots is True, expected a whole number"),
        ({"kind": "topk", "slots": 2}, "router.slots is 2, expected 1 for the kind 'topk'"),
        ({"kind": "sparsemixer", "epsilon": 0}, "router.epsilon is 0.0, expected above 0"),
        ({"kind": "topk", "scale": 2.0}, "router.scale is 2.0, expected 1.0 for the kind 'topk'"),
        ({"kind": "switch", "epsilon": 0.2}, "router.epsilon is 0.2, expected 0.1 for the kind 'switch'"),
        ({"kind": "sigmoid_bias", "scale": 0.0}, "router.scale is 0.0, expected more than 0"),
        ({"kind": "switch", "capacty": 1.0}, "router.capacty is unknown .*did you mean 'capacity'"),
        ("switch", "router is 'switch', expected a table with the key 'kind'"),
    ],
)
def test_bad_values(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RouterConfig.from_fields(fields)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"router": {"kind": "switch"}},
            "num_experts_per_tok is 2, but the router 'switch' sends each token to 1 of 8",
        ),
        ({"router": {"kind": "dense"}}, "num_experts_per_tok is 2, but the router 'dense' sends each token to 8 of 8"),
        ({"router": {"kind": "sparsemixer_v2"}, "num_experts_per_tok": 3}, "'sparsemixer_v2' sends each token to 2"),
        ({"router": {"kind": "noisy_topk"}, "num_experts_per_tok": 1}, "the router gets no gradient"),
        ({"router": {"kind": "sigmoid_bias"}, "num_experts_per_tok": 1}, "the router gets no gradient"),
        (
            {"router": {"kind": "hash"}, "num_local_experts": None},
            "router.kind is 'hash', but num_local_experts is None",
        ),
    ],
)
def test_models_that_do_not_fit_their_router(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_fields(model, where="config")


def test_one_renormalised_expert_can_be_run_but_not_trained() -> None:
    """Its weight is always 1: no gradient reaches the router."""
    config = ModelConfig(num_experts_per_tok=1)
    with pytest.raises(ConfigError, match="the one weight is always 1"):
        config.router.check_trainable(1, config.norm_topk_prob)
    config.router.check_trainable(1, False)
    config.router.check_trainable(2, True)


def test_softmax_over_all_is_top_k_that_is_not_renormalised() -> None:
    config = ModelConfig(router=RouterConfig(kind="topk_all"))
    assert config == ModelConfig(norm_topk_prob=False) and config.router.kind == "topk"


def test_what_a_config_json_says() -> None:
    """Training's own options are not the model's."""
    assert "router" not in ModelConfig().to_fields()
    assert "router" not in ModelConfig(router=RouterConfig(capacity=1.25, jitter=0.01)).to_fields()
    router = RouterConfig(kind="sigmoid_bias", scale=2.5, capacity=2.0, drop="probability")
    assert ModelConfig(router=router).to_fields()["router"] == {"kind": "sigmoid_bias", "scale": 2.5}


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_what_a_router_adds_to_the_size(kind: str) -> None:
    router = RouterConfig(kind=kind)
    config = ModelConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=router.top_k_for(4, 2), router=router,
    )  # fmt: skip
    each = {"noisy_topk": 128, "sigmoid_bias": 68, "soft": 65, "sparsemixer": 65, "hash": 0, "random": 0}
    assert parameters(config).router == active_parameters(config).router == 3 * each.get(kind, 64)
