"""Planted heads do what they were planted for: a model that was never trained copies."""

import pytest
import torch
from torch.nn import functional

from coterie.config import ModelConfig
from coterie.model import Transformer, attention
from coterie.model.attention import WholeSequences
from coterie.train.induction import plant_induction_heads
from coterie.train.initialise import initialise


def model(is_planted: bool, **fields: int | None) -> Transformer:
    shape = {
        "vocab_size": 1000, "hidden_size": 192, "intermediate_size": 32, "num_hidden_layers": 4, "head_dim": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    config = ModelConfig.from_fields(shape | {"tie_word_embeddings": True} | fields, where="test")
    made = Transformer(config, torch.float32)
    initialise(made, std=0.02, seed=0)
    if is_planted:
        with torch.no_grad():
            plant_induction_heads(made.tensors(), config, std=0.02, seed=0)
    return made


@torch.inference_mode()
def loss_of_the_second_time(made: Transformer, n: int = 60) -> float:
    """Mean loss on random tokens that come again: log V where nothing is copied."""
    once = torch.randperm(made.config.vocab_size, generator=torch.Generator().manual_seed(1))[:n]
    ids = once.repeat(2)
    hidden = made(ids, torch.arange(2 * n), WholeSequences(1, None)).hidden_TD
    return float(functional.cross_entropy(made.head(hidden)[n : 2 * n - 1], ids[n + 1 :]))


@pytest.mark.parametrize(
    "fields", [{}, {"num_local_experts": None}, {"num_key_value_heads": 4}, {"num_hidden_layers": 2}]
)
def test_an_untrained_model_copies(fields: dict[str, int | None]) -> None:
    plain, planted = (loss_of_the_second_time(model(p, **fields)) for p in (False, True))
    assert abs(plain - 6.9) < 0.3 and planted < plain - 0.4


def test_attention_of_layer_0_looks_at_the_previous_token(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = model(True), {}
    plain = attention._attend

    def spy(q_THP: torch.Tensor, segment: attention.Segment) -> torch.Tensor:
        scores = q_THP[:, 0] @ segment.k_BCGP[0, :, 0].T / q_THP.shape[-1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        seen.setdefault("weights", scores.masked_fill(later, -torch.inf).softmax(-1))
        return plain(q_THP, segment)

    monkeypatch.setattr(attention, "_attend", spy)
    with torch.inference_mode():
        made(torch.arange(100, 400), torch.arange(300), WholeSequences(1, None))
    assert seen["weights"].diagonal(-1).mean() > 0.8


def test_other_shapes_are_planted_too() -> None:
    for fields in ({"head_dim": 16}, {"hidden_size": 24}, {"num_attention_heads": 2}):
        made = model(True, **fields)
        assert all(torch.isfinite(p).all() for p in made.parameters())
        assert loss_of_the_second_time(made) < 7.3
