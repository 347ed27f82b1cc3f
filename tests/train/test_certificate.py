"""Upcycled models against their dense one, through the very modules, in float64: below 1e-10 or explained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import CheckpointError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.train.certificate import TOLERANCE, Certificate, certify
from coterie.train.upcycle import Upcycling, sparse_config, upcycle

Examine = Callable[..., Certificate]
IDS = [(7 * i * i + 3 * i) % 40 for i in range(30)]


@pytest.fixture
def examine(dense_config: ModelConfig, dense_tensors: Any) -> Callable[..., Certificate]:
    """The certificate of a model whose experts are held in float64, changed by `edit(sparse tensors)` before."""

    def certificate(
        plan: Upcycling, fields: dict[str, Any], dense_config: ModelConfig = dense_config, edit: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> Certificate:  # fmt: skip
        config = sparse_config(dense_config, fields, plan, where="test")
        dense = {name: t.to(dtype) for name, t in dense_tensors(dense_config).items()}
        read = upcycle(dense.__getitem__, config, plan)
        shapes = {name: t.shape for name, t in Transformer(config, torch.float32).tensors().items()}
        own = {name: torch.full(shape, float(len(shape) == 1)) for name, shape in shapes.items() if "router." in name}
        sparse = own | {name: read(name) for name in shapes if name not in own}
        if edit is not None:
            edit(sparse)
        return certify(
            dense.__getitem__, dense_config, sparse.__getitem__, config, IDS,
            scale=plan.scale(config), granularity=plan.granularity, is_exact=plan.is_exact(config, dtype),
        )  # fmt: skip

    return certificate


@pytest.mark.parametrize("n_experts", [4, 7, 8])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("std", [0.0, 0.02, 30.0])
def test_copies_equal_the_dense_model_whatever_the_router(
    examine: Examine, n_experts: int, top_k: int, std: float
) -> None:
    """Also with one expert a token: its weight is 1. (Its router would get no gradient: a recipe refuses it.)"""
    fields = {"num_local_experts": n_experts, "num_experts_per_tok": top_k}
    found = examine(Upcycling(router_std=std), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE and found.logit > 0.5
    found.require()


@pytest.mark.parametrize("granularity", [2, 4])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("std", [0.02, 5.0])
def test_segments_equal_the_dense_model_whatever_the_router(
    examine: Examine, granularity: int, copies: int, std: float
) -> None:
    fields = {"num_local_experts": 3 * granularity, "num_experts_per_tok": copies * granularity}
    found = examine(Upcycling(method="split", granularity=granularity, router_std=std), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE, found


@pytest.mark.parametrize("granularity", [1, 2, 4])
def test_softmax_over_all_experts_equals_the_dense_model_where_the_router_has_no_opinion(
    examine: Examine, granularity: int
) -> None:
    fields = {"num_local_experts": 4 * granularity, "num_experts_per_tok": granularity, "norm_topk_prob": False}
    plan = {"method": "split", "granularity": granularity}
    found = examine(Upcycling(router_std=0.0, **plan), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE
    found = examine(Upcycling(router_std=0.02, **plan), fields)
    assert not found.is_equality_expected and TOLERANCE < found.difference < 0.5 * found.logit
    assert 0.9 < found.lowest < 1 or 1 < found.highest < 1.2
    assert "times the dense block" in found.sentence()
    found.require()  # nothing is claimed, so nothing is broken
    every = fields | {"num_experts_per_tok": 4 * granularity}
    assert examine(Upcycling(router_std=3.0, **plan), every).difference < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "top_k"),
    [("noisy_topk", 2), ("sigmoid_bias", 3), ("gshard", 2), ("hash", 2), ("random", 1), ("dense", 4)],
)
def test_routers_whose_weights_add_up_to_one(examine: Examine, kind: str, top_k: int) -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": top_k, "router": {"kind": kind}}
    found = examine(Upcycling(router_std=2.0), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE, found


@pytest.mark.parametrize(
    ("router", "renormalise"),
    [
        ({"kind": "sigmoid_bias", "scale": 2.5}, False),
        ({"kind": "noisy_topk"}, False),
        ({"kind": "sparsemixer_v2"}, True),
    ],
)
def test_two_experts_are_scaled_for_a_router_without_an_opinion(
    examine: Examine, router: dict[str, Any], renormalise: bool
) -> None:
    """The scale of sigmoids that are not renormalised was forgotten, and that the second draw is from fewer."""
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": renormalise, "router": router}
    found = examine(Upcycling(router_std=0.0), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE, found


@pytest.mark.parametrize("kind", ["switch", "base", "sinkhorn"])
def test_routers_that_weigh_their_one_expert_by_what_they_think_of_it(examine: Examine, kind: str) -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 1, "router": {"kind": kind}}
    found = examine(Upcycling(router_std=0.0), fields)
    assert found.is_equality_expected and found.difference < TOLERANCE, found
    found = examine(Upcycling(router_std=0.1), fields)
    assert not found.is_equality_expected and TOLERANCE < found.difference < found.logit


@pytest.mark.parametrize(("kind", "top_k"), [("soft", 4), ("expert_choice", 2)])
def test_routers_that_look_at_several_tokens_claim_nothing(examine: Examine, kind: str, top_k: int) -> None:
    found = examine(Upcycling(), {"num_local_experts": 4, "num_experts_per_tok": top_k, "router": {"kind": kind}})
    assert not found.is_equality_expected
    found.require()


@pytest.mark.parametrize("factor", [0.5, 2.0, 1 + 1e-6])
def test_a_wrong_scale_is_caught(examine: Examine, factor: float) -> None:
    def edit(sparse: dict[str, Tensor]) -> None:
        sparse["layers.1.moe.experts.down"] = sparse["layers.1.moe.experts.down"] * factor

    fields = {"num_local_experts": 8, "num_experts_per_tok": 4}
    found = examine(Upcycling(method="split", granularity=4), fields, edit=edit)
    assert found.is_equality_expected and found.difference > TOLERANCE
    with pytest.raises(CheckpointError, match="must equal the dense one and a logit differs"):
        found.require()


def test_the_cube_root_of_the_scale_in_all_three_parts_is_not_exact(examine: Examine) -> None:
    """Why our factor is not the one of arXiv 2410.07524: silu(a·x) is not a·silu(x)."""

    def edit(sparse: dict[str, Tensor]) -> None:
        for layer in range(2):
            gate, up = sparse[f"layers.{layer}.moe.experts.gate_up"].chunk(2, 1)
            down = sparse[f"layers.{layer}.moe.experts.down"]
            gate, up, down = gate * 4 ** (1 / 3), up / 2 * 4 ** (1 / 3), down / 2 * 4 ** (1 / 3)
            sparse[f"layers.{layer}.moe.experts.gate_up"] = torch.cat((gate, up), 1)
            sparse[f"layers.{layer}.moe.experts.down"] = down

    fields = {"num_local_experts": 8, "num_experts_per_tok": 4}
    found = examine(Upcycling(method="split", granularity=4), fields, edit=edit)
    assert found.is_equality_expected and found.difference > 1e-3


def test_segments_that_are_not_taken_together_are_noticed(examine: Examine) -> None:
    def edit(sparse: dict[str, Tensor]) -> None:
        for layer in range(2):
            sparse[f"layers.{layer}.moe.router"] = torch.randn(8, 8, generator=torch.Generator().manual_seed(layer))

    fields = {"num_local_experts": 8, "num_experts_per_tok": 4}
    found = examine(Upcycling(method="split", granularity=4), fields, edit=edit)
    assert not found.is_equality_expected and found.lowest < 0.9 and found.difference > 1e-3


def test_drop_upcycling_claims_nothing(examine: Examine) -> None:
    found = examine(Upcycling(method="drop"), {"num_local_experts": 4})
    assert not found.is_equality_expected and found.difference > 1e-3 and "drawn anew" in found.sentence()


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"sliding_window": None}, {"head_dim": 6}])
def test_shapes_of_dense_models(examine: Examine, dense_config: ModelConfig, changes: dict[str, Any]) -> None:
    config = ModelConfig.from_fields(dense_config.to_fields() | changes, where="test")
    found = examine(Upcycling(), {"num_local_experts": 4}, config)
    assert found.is_equality_expected and found.difference < TOLERANCE


def test_bfloat16_weights_are_the_dense_ones_where_the_scale_is_a_power_of_two(examine: Examine) -> None:
    fields = {"num_local_experts": 8, "num_experts_per_tok": 4}
    found = examine(Upcycling(method="split", granularity=4), fields, dtype=torch.bfloat16)
    assert found.is_equality_expected and found.difference < TOLERANCE
    odd = {"num_local_experts": 6, "num_experts_per_tok": 3}
    found = examine(Upcycling(method="split", granularity=3), odd, dtype=torch.bfloat16)
    assert not found.is_equality_expected and found.difference > TOLERANCE


def test_the_certificate_reads_what_the_model_computes(
    examine: Examine, dense_config: ModelConfig, dense_tensors: Any
) -> None:
    """The dense model's largest logit, beside a whole model's own forward pass in float64."""
    tensors = dense_tensors()
    found = examine(Upcycling(), {"num_local_experts": 4})
    model = Transformer(dense_config, torch.float64).eval()
    for name, target in model.tensors().items():
        target.copy_(tensors[name])
    with torch.no_grad():
        ids_T = torch.tensor(IDS)
        hidden = model(ids_T, torch.arange(len(IDS)), WholeSequences(1, dense_config.sliding_window)).hidden_TD
        logits = model.head(hidden)
    assert found.logit == pytest.approx(float(logits.abs().max()), rel=1e-12)
    assert found.n_tokens == 30 and found.to_json()["is_equality_expected"] is True
