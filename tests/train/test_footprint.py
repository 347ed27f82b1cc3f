"""Bytes that the planner expects against bytes that the trainer's own pieces hold and keep."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from coterie.config import ModelConfig
from coterie.model import Transformer
from coterie.sizes import parameters
from coterie.train.footprint import activations, footprint, static_memory
from coterie.train.initialise import initialise, muon_matrices
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Data, Recipe, Train
from coterie.train.sample import sample

SHAPE: dict[str, Any] = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
)  # fmt: skip
DENSE = {"num_local_experts": None}
SOFT = {"router": {"kind": "soft"}, "num_experts_per_tok": 4}


def recipe(**train: Any) -> Recipe:
    return Recipe(
        model=SHAPE, data=Data(files=("x",)), train=Train(**{"steps": 4, "batch": 4, "sequence": 128, **train})
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shape", [{}, DENSE, {"tie_word_embeddings": True}, {"router": {"kind": "noisy_topk"}}])
def test_what_the_optimizer_holds_is_exact(dtype: torch.dtype, optimizer: str, shape: dict[str, Any]) -> None:
    config, train = ModelConfig(**{**SHAPE, **shape}), recipe(optimizer=optimizer).train
    model = Transformer(config, dtype)
    initialise(model, std=0.02, seed=0)
    muon = muon_matrices(model) if optimizer == "muon" else None
    held = MasterOptimizer(model, betas=train.betas, weight_decay=0.1, muon=muon)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    held.step(1e-3, 1.0)
    found = static_memory(config, train, dtype)
    state = {name: t.numel() * t.itemsize for name, t in held.state().items()}
    weights = {name: p.numel() * p.itemsize for name, p in model.named_parameters()}
    own = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    masters = {name: n for name, n in state.items() if name.startswith("master/")}
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.weights == sum(weights.values())
    assert found.masters == sum(n for name, n in masters.items() if name.removeprefix("master/") not in own)
    assert found.moments == sum(n for name, n in state.items() if name not in masters)
    assert found.gradients == 4 * found.parameters


def test_parameters_are_those_of_the_arithmetic_without_torch() -> None:
    for shape in ({}, DENSE):
        config = ModelConfig(**{**SHAPE, **shape})
        assert static_memory(config, recipe().train, torch.float32).parameters == parameters(config).total


def test_a_model_that_fits_nowhere_is_counted() -> None:
    found = static_memory(ModelConfig(), recipe().train, torch.bfloat16)
    assert found.parameters == 46_702_792_704 and found.held == pytest.approx(14 * found.parameters, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, DENSE, SOFT])
def test_the_formula_of_activations_is_near_what_a_pass_keeps(dtype: torch.dtype, shape: dict[str, Any]) -> None:
    config, run = ModelConfig(**{**SHAPE, **shape}), recipe()
    counted = sample(run, config, dtype, torch.device("cpu"), rows=4, sequence=256, seconds=0.5).kept
    formula = activations(config, run.train, dtype, 4, 256)
    assert set(counted) == set(asdict(formula))
    blocks = ("attention", "experts", "norms")
    assert sum(getattr(formula, b) for b in blocks) == pytest.approx(sum(counted[b] for b in blocks), rel=0.35)
    assert formula.experts == pytest.approx(counted["experts"], rel=0.35)


def test_recompute_keeps_one_layer_and_accumulating_carries_gradients() -> None:
    config = ModelConfig(**{**SHAPE, "num_hidden_layers": 8})
    plain = activations(config, recipe().train, torch.float32, 4, 256)
    again = activations(config, recipe(recompute=True).train, torch.float32, 4, 256)
    assert again.experts * 8 == plain.experts and again.total < plain.total / 4
    one = footprint(config, recipe().train, torch.float32, 4, 256)
    assert replace(one, is_accumulating=True).peak == one.peak + one.static.gradients


def test_activations_grow_with_rows_and_those_of_the_loss_less() -> None:
    config = ModelConfig(**SHAPE)
    small, large = (activations(config, recipe().train, torch.float32, rows, 256) for rows in (1, 2))
    assert large.experts == 2 * small.experts and large.loss < 2 * small.loss
