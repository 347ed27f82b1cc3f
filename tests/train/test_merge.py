"""Several dense models into one: what is shared, whose expert is whose, and routers that find them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import RecipeError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.train.certificate import TOLERANCE, certify
from coterie.train.merge import embedding_routers, merge, merged_config, prompt_routers

DenseTensors = Callable[..., dict[str, Tensor]]


def prompts(n_kinds: int, n: int = 3, length: int = 30) -> list[list[list[int]]]:
    """Kind k is made of the ids from 4 + 9·k on, in no order."""
    generator = torch.Generator().manual_seed(0)

    def one(kind: int) -> list[int]:
        return [1, *(4 + 9 * kind + torch.randint(0, 9, (length,), generator=generator)).tolist()]

    return [[one(kind) for _ in range(n)] for kind in range(n_kinds)]


def built(config: ModelConfig, read: Callable[[str], Tensor]) -> Transformer:
    model = Transformer(config, torch.float32).eval()
    for name, target in model.tensors().items():
        target.copy_(read(name))
    return model


def test_experts_are_the_models_and_the_rest_is_shared(dense_config: ModelConfig, dense_tensors: DenseTensors) -> None:
    models = [dense_tensors(seed=seed) for seed in range(3)]
    rows = [torch.zeros(3, 8)] * 2
    for how in ("mean", "first"):
        read = merge([m.__getitem__ for m in models], how, rows)
        for e, model in enumerate(models):
            gate, up, down = (model[f"layers.1.feed_forward.{p}"] for p in ("gate", "up", "down"))
            assert torch.equal(read("layers.1.moe.experts.gate_up")[e], torch.cat((gate, up)))
            assert torch.equal(read("layers.1.moe.experts.down")[e], down)
        kept = [m["layers.0.attention.o"] for m in models]
        want = kept[0] if how == "first" else torch.stack(kept).mean(0)
        torch.testing.assert_close(read("layers.0.attention.o"), want)


@pytest.mark.parametrize("routers", [prompt_routers, embedding_routers])
@pytest.mark.parametrize("n_kinds", [2, 4])
def test_prompts_of_each_kind_go_to_their_expert(
    routers: Any, n_kinds: int, dense_config: ModelConfig, dense_tensors: DenseTensors
) -> None:
    """Branches of one model whose embeddings know the kinds of ids; new text of a kind goes to its expert."""
    wide = ModelConfig.from_fields(dense_config.to_fields() | {"hidden_size": 32, "head_dim": 8}, where="test")
    base = dense_tensors(wide)
    for kind in range(n_kinds):
        base["embed"][4 + 9 * kind : 13 + 9 * kind] += torch.randn(32, generator=torch.Generator().manual_seed(kind))
    for layer in range(2):  # a residual stream that keeps what it is given, as in trained models
        base[f"layers.{layer}.attention.o"] *= 0.1
        base[f"layers.{layer}.feed_forward.down"] *= 0.1
    models = [{n: t + 0.02 * dense_tensors(wide, seed=s)[n] for n, t in base.items()} for s in range(n_kinds)]
    read_models = [m.__getitem__ for m in models]
    found = routers(read_models, wide, "mean", prompts(n_kinds))
    assert found.degenerate == [] and len(found.rows_ED) == 2
    config = merged_config([wide] * n_kinds, list("abcd")[:n_kinds], {}, where="r.toml")
    model = built(config, merge(read_models, "mean", found.rows_ED))
    for kind, texts in enumerate(prompts(n_kinds, n=20)):
        ids_T = torch.tensor(texts[5:])
        with torch.no_grad():
            positions_T = torch.arange(ids_T.shape[1]).repeat(len(ids_T))
            out = model(ids_T.flatten(), positions_T, WholeSequences(len(ids_T), wide.sliding_window))
        for layer, routing in enumerate(out.routings):
            share = float((routing.ids_TK[:, 0].view(ids_T.shape)[:, 1:] == kind).float().mean())
            assert share > 0.9, (kind, layer)


def test_prompts_of_one_kind_make_degenerate_routers(dense_config: ModelConfig, dense_tensors: DenseTensors) -> None:
    same = prompts(1) * 2
    models = [dense_tensors().__getitem__] * 2
    found = prompt_routers(models, dense_config, "mean", same)
    assert found.degenerate == [0, 1]
    assert all(torch.equal(rows, torch.zeros(2, 8)) for rows in found.rows_ED)


def test_a_model_merged_with_itself_is_itself(dense_config: ModelConfig, dense_tensors: DenseTensors) -> None:
    dense = {name: t.double() for name, t in dense_tensors().items()}
    read_models = [dense.__getitem__] * 3
    found = prompt_routers(read_models, dense_config, "mean", prompts(3))
    config = merged_config([dense_config] * 3, ["a", "b", "c"], {}, where="r.toml")
    read = merge(read_models, "first", found.rows_ED)
    ids = [i % 40 for i in range(25)]
    certificate = certify(dense.__getitem__, dense_config, read, config, ids, scale=1.0, granularity=1, is_exact=True)
    assert certificate.is_equality_expected and certificate.difference < TOLERANCE


@pytest.mark.parametrize(
    ("second", "fields", "message"),
    [
        ({"num_local_experts": 4}, {}, "b is sparse already"),
        ({"num_hidden_layers": 3}, {}, "b has num_hidden_layers 3 and a 2; only models of one shape"),
        ({"vocab_size": 41}, {}, "b has vocab_size 41 and a 40"),
        ({}, {"num_local_experts": 4}, "2 models to merge make as many experts"),
        ({}, {"rope_theta": 2.0}, "rope_theta is 2.0 and the dense model makes it 10000.0"),
    ],
)
def test_models_that_do_not_merge(
    second: dict[str, Any], fields: dict[str, Any], message: str, dense_config: ModelConfig
) -> None:
    other = ModelConfig.from_fields(dense_config.to_fields() | second, where="test")
    with pytest.raises(RecipeError, match=message):
        merged_config([dense_config, other], ["a", "b"], fields, where="r.toml")
