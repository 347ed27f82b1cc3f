"""A tiny dense model to make sparse ones of: its configuration and random tensors by canonical name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.model import Transformer

DenseTensors = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def dense_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=None, max_position_embeddings=64, rope_theta=1e4, sliding_window=6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def dense_tensors(dense_config: ModelConfig) -> DenseTensors:
    def tensors(config: ModelConfig = dense_config, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = Transformer(config, torch.float32).tensors()
        return {name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in shapes.items()}

    return tensors
