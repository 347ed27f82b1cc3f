"""Experts made of a dense block, by hand-computable numbers; whether the whole model agrees is the certificate's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import ConfigError, RecipeError
from coterie.kernels.reference import gated_ffn
from coterie.model import Transformer
from coterie.train.upcycle import Upcycling, sparse_config, upcycle

Made = Callable[..., tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture
def make(dense_config: ModelConfig, dense_tensors: Callable[..., dict[str, Tensor]]) -> Made:
    """The configuration, the dense tensors and all sparse ones of a plan."""

    def made(plan: Upcycling, **fields: Any) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
        config = sparse_config(dense_config, fields, plan, where="r.toml")
        dense = dense_tensors()
        read = upcycle(dense.__getitem__, config, plan)
        return config, dense, {name: read(name) for name in Transformer(config, torch.float32).tensors()}

    return made


def test_copies_are_the_dense_block_and_the_rest_is_kept(make: Made) -> None:
    config, dense, sparse = make(Upcycling(), num_local_experts=5)
    assert config.num_experts_per_tok == 2 and config.intermediate_size == 12 and config.sliding_window == 6
    gate_up = torch.cat((dense["layers.1.feed_forward.gate"], dense["layers.1.feed_forward.up"]))
    for e in range(5):
        assert torch.equal(sparse["layers.1.moe.experts.gate_up"][e], gate_up)
        assert torch.equal(sparse["layers.1.moe.experts.down"][e], dense["layers.1.feed_forward.down"])
    kept = [n for n in dense if "feed_forward" not in n]
    assert len(kept) == 3 + 2 * 6 and all(torch.equal(sparse[n], dense[n]) for n in kept)


def test_routers_are_normal_differ_by_layer_and_come_again_with_their_seed(make: Made) -> None:
    _, _, a = make(Upcycling(router_std=0.5), num_local_experts=8)
    _, _, b = make(Upcycling(router_std=0.5), num_local_experts=8)
    _, _, c = make(Upcycling(router_std=0.5, seed=1), num_local_experts=8)
    rows = torch.cat([a["layers.0.moe.router"], a["layers.1.moe.router"]])
    assert rows.std() == pytest.approx(0.5, rel=0.2) and rows.unique(dim=0).shape[0] == 16
    assert torch.equal(a["layers.0.moe.router"], b["layers.0.moe.router"])
    assert not torch.equal(a["layers.0.moe.router"], c["layers.0.moe.router"])


@pytest.mark.parametrize("granularity", [2, 3, 4, 6])
def test_the_segments_of_a_copy_add_up_to_the_dense_block(granularity: int, make: Made) -> None:
    """Each weighs 1/G when it is chosen, so the mean of a copy's experts is the block."""
    plan = Upcycling(method="split", granularity=granularity)
    config, dense, sparse = make(plan, num_local_experts=2 * granularity, num_experts_per_tok=granularity)
    assert config.intermediate_size == 12 // granularity
    router = sparse["layers.0.moe.router"]
    x_TD = torch.randn(5, 8)
    gate, up, down = (dense[f"layers.0.feed_forward.{p}"] for p in ("gate", "up", "down"))
    want = gated_ffn(x_TD, torch.cat((gate, up)), down)
    experts = zip(sparse["layers.0.moe.experts.gate_up"], sparse["layers.0.moe.experts.down"], strict=True)
    out = torch.stack([gated_ffn(x_TD, gate_up, down) for gate_up, down in experts])
    for copy in (0, 1):
        mine = slice(copy * granularity, (copy + 1) * granularity)
        torch.testing.assert_close(out[mine].mean(0), want, rtol=1e-5, atol=1e-5)
        assert (router[mine] == router[copy * granularity]).all()
    assert not torch.equal(router[0], router[-1])


def test_powers_of_two_are_shared_without_rounding(dense_config: ModelConfig, dense_tensors: Any) -> None:
    """G = 8 is 2 for up and 4 for down: bfloat16 holds the scaled numbers as exactly as the dense ones."""
    dense = ModelConfig.from_fields(dense_config.to_fields() | {"intermediate_size": 16}, where="test")
    plan = Upcycling(method="split", granularity=8)
    config = sparse_config(dense, {"num_local_experts": 16, "num_experts_per_tok": 8}, plan, where="r")
    tensors = {name: t.bfloat16() for name, t in dense_tensors(dense).items()}
    read = upcycle(tensors.__getitem__, config, plan)
    gate_up, down = read("layers.0.moe.experts.gate_up"), read("layers.0.moe.experts.down")
    assert gate_up.dtype == down.dtype == torch.bfloat16 and plan.is_exact(config, torch.bfloat16)
    up, gate = tensors["layers.0.feed_forward.up"], tensors["layers.0.feed_forward.gate"]
    assert torch.equal(gate_up[9], torch.cat((gate[2:4], 2 * up[2:4])))
    assert torch.equal(down[9], 4 * tensors["layers.0.feed_forward.down"][:, 2:4])
    odd = Upcycling(method="split", granularity=3)
    assert not odd.is_exact(config, torch.float32) and odd.is_exact(config, torch.float64)


@pytest.mark.parametrize(
    ("fields", "granularity", "scale"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 1, 1.0),
        ({"num_local_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False}, 1, 4.0),
        ({"num_local_experts": 64, "num_experts_per_tok": 8}, 4, 4.0),
        # arXiv 2410.07524, E8G8T8: eight copies in eight segments, eight of them a token: (E·G²/T) = 64
        ({"num_local_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False}, 8, 64.0),
        ({"num_local_experts": 8, "num_experts_per_tok": 1, "router": {"kind": "switch"}}, 1, 8.0),
        ({"num_local_experts": 8, "num_experts_per_tok": 8, "router": {"kind": "dense"}}, 1, 1.0),
        (
            {
                "num_local_experts": 8,
                "num_experts_per_tok": 4,
                "norm_topk_prob": False,
                "router": {"kind": "sigmoid_bias", "scale": 2.0},
            },
            1,
            0.25,
        ),
    ],
)
def test_scale_of_experts(fields: dict[str, Any], granularity: int, scale: float) -> None:
    config = ModelConfig(**fields)
    assert Upcycling(granularity=granularity).scale(config) == scale


def test_drop_draws_the_same_channels_of_all_three_parts_anew_with_their_statistics(
    dense_config: ModelConfig, dense_tensors: Any
) -> None:
    fields = dense_config.to_fields() | {"intermediate_size": 400, "hidden_size": 32}
    wide = ModelConfig.from_fields(fields, where="test")
    plan = Upcycling(method="drop", drop=0.25)
    config = sparse_config(wide, {"num_local_experts": 3}, plan, where="r")
    dense = dense_tensors(wide)
    dense["layers.0.feed_forward.up"] += 0.7  # a mean to keep
    read = upcycle(dense.__getitem__, config, plan)
    gate_EFD, up_EFD = read("layers.0.moe.experts.gate_up").chunk(2, 1)
    down_EFD = read("layers.0.moe.experts.down").mT
    changed = []
    for e in range(3):
        parts = [(gate_EFD[e], "gate"), (up_EFD[e], "up"), (down_EFD[e], "down")]
        old = [dense[f"layers.0.feed_forward.{name}"] for _, name in parts]
        old[2] = old[2].T
        differ = [(new != was).any(1) for (new, _), was in zip(parts, old, strict=True)]
        assert all(torch.equal(d, differ[0]) for d in differ) and int(differ[0].sum()) == 100
        for (new, _), was in zip(parts, old, strict=True):
            assert float(new[differ[0]].mean()) == pytest.approx(float(was[differ[0]].mean()), abs=0.03)
            assert float(new[differ[0]].std()) == pytest.approx(float(was[differ[0]].std()), rel=0.05)
        changed.append(differ[0])
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(read("layers.0.moe.experts.down").mT, down_EFD)
    nothing = upcycle(dense.__getitem__, config, Upcycling(method="drop", drop=0.0))
    assert torch.equal(nothing("layers.0.moe.experts.down")[2], dense["layers.0.feed_forward.down"])


@pytest.mark.parametrize(
    ("dense", "fields", "plan", "message"),
    [
        ({"num_local_experts": 4}, {"num_local_experts": 4}, {}, "sparse already"),
        ({}, {}, {}, "needs num_local_experts"),
        ({}, {"num_local_experts": 4, "hidden_size": 16}, {}, "hidden_size is 16 and the dense model makes it 8"),
        ({}, {"num_local_experts": 4, "intermediate_size": 12}, {"granularity": 2}, "makes it 6"),
        ({}, {"num_local_experts": 10}, {"granularity": 5}, "granularity 5 does not divide .* 12"),
        ({}, {"num_local_experts": 6, "num_experts_per_tok": 3}, {"granularity": 2}, "num_experts_per_tok is 3"),
        ({}, {"num_local_experts": 7, "num_experts_per_tok": 2}, {"granularity": 2}, "num_local_experts is 7"),
        ({}, {"num_local_experts": 8, "num_experts_per_tok": 2, "router": {"kind": "hash"}}, {"granularity": 2},
         "granularity 2 needs a router .* not 'hash'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    dense: dict[str, Any],
    fields: dict[str, Any],
    plan: dict[str, Any],
    message: str,
    dense_config: ModelConfig,
) -> None:
    config = ModelConfig.from_fields(dense_config.to_fields() | dense, where="test")
    with pytest.raises(RecipeError, match=message):
        sparse_config(config, fields, Upcycling(method="split", **plan), where="r.toml")


def test_an_unknown_field_names_the_nearest(dense_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="num_local_experts"):
        sparse_config(dense_config, {"num_local_expert": 4}, Upcycling(), where="r.toml")
