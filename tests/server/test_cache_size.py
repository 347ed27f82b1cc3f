import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import ResourceError
from coterie.server import cache_size
from coterie.server.cache_size import bytes_per_token, cache_tokens
from coterie.server.settings import Settings

CPU = torch.device("cpu")


def mixtral() -> ModelConfig:
    return ModelConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, max_position_embeddings=32768,
    )  # fmt: skip


def test_bytes_of_a_token() -> None:
    assert bytes_per_token(mixtral(), "auto", torch.bfloat16) == 131_072
    assert bytes_per_token(mixtral(), "auto", torch.float32) == 262_144
    assert bytes_per_token(mixtral(), "int8", torch.float32) == 67_584


def test_what_was_asked_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_size, "available_memory", lambda device: 16_000_000_000)
    sizes = [
        cache_tokens(mixtral(), settings, torch.bfloat16, CPU)
        for settings in (Settings(cache_tokens=77), Settings(cache_gb=1.0), Settings(), Settings(max_live=1))
    ]
    assert sizes == [77, 7629, 30517, 30517]


def test_no_more_than_can_be_used(dense_config: ModelConfig) -> None:
    assert cache_tokens(dense_config, Settings(max_live=3, cache_gb=1.0), torch.float32, CPU) == 3 * 64


def test_too_little_is_said() -> None:
    with pytest.raises(ResourceError, match="--cache-gb"):
        cache_tokens(mixtral(), Settings(cache_gb=0.01), torch.bfloat16, CPU)
