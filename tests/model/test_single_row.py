"""A row on its own gives the numbers that the model gives, and only a plain model is written out."""

import pytest
import torch
from torch import nn

from coterie.config import ModelConfig
from coterie.engine.cache import SlotCache
from coterie.model import Transformer
from coterie.model.single_row import SingleRow
from coterie.train.loop import initialise


def model(dtype: torch.dtype = torch.float32, **fields: int | None) -> Transformer:
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    made = Transformer(ModelConfig.from_fields(shape | fields, where="test"), dtype)
    initialise(made, std=0.3, seed=1)
    return made.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", [{}, {"sliding_window": 5}, {"num_experts_per_tok": 3}, {"num_key_value_heads": 4}])
@torch.inference_mode()
def test_the_numbers_of_the_model(dtype: torch.dtype, fields: dict[str, int]) -> None:
    made = model(dtype, **fields)
    row = SingleRow.of(made)
    assert row is not None
    caches = [SlotCache(made.config, dtype) for _ in range(2)]
    for token in torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(0)).tolist():
        outputs = []
        for run, cache in zip((made, row), caches, strict=True):
            plan = cache.decode(1)
            outputs.append(run(torch.tensor([token]), plan.positions_T, plan))
        expected, found = outputs
        assert len(found.routings) == made.config.num_hidden_layers
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.hidden_TD, expected.hidden_TD, rtol=tolerance, atol=tolerance)
        logits = row.logits(expected.hidden_TD)
        torch.testing.assert_close(logits, made.head(expected.hidden_TD), rtol=tolerance, atol=10 * tolerance)
        for a, b in zip(found.routings, expected.routings, strict=True):
            assert torch.equal(a.ids_TK, b.ids_TK) and a.weights_TK.shape == b.weights_TK.shape


def test_a_dense_model_is_not_written_out() -> None:
    assert SingleRow.of(model(num_local_experts=None)) is None


def test_swapped_experts_and_routers_are_called() -> None:
    made, seen = model(), []

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, *given: object) -> object:
            seen.append(len(given))
            return self.inner(*given)

    feed_forward = made.layers[1].feed_forward
    feed_forward.experts, feed_forward.router = Spy(feed_forward.experts), Spy(feed_forward.router)
    row, cache = SingleRow.of(made), SlotCache(made.config, torch.float32)
    assert row is not None
    with torch.inference_mode():
        plan = cache.decode(1)
        row(torch.tensor([5]), plan.positions_T, plan)
    assert seen == [2, 2]


@pytest.mark.parametrize("part", ["linear", "norm", "projection", "o", "attention", "moe_norm", "head"])
def test_a_model_with_another_part_is_left_to_itself(part: str) -> None:
    made = model()
    block = made.layers[2]

    class Other(nn.Identity):
        pass

    owner, name = {
        "linear": (block.attention.qkv, "linear"), "norm": (block.attention.qkv, "norm"),
        "projection": (block.attention, "qkv"), "o": (block.attention, "o"), "attention": (block, "attention"),
        "moe_norm": (block.feed_forward, "norm"), "head": (made.head, "linear"),
    }[part]  # fmt: skip
    setattr(owner, name, Other())
    assert SingleRow.of(made) is None
