"""How many tokens of keys and values a server's cache holds: what was asked for, else a quarter of the free memory.

On a card it is all that is free but for what a pass and the graphs of decoding need: nothing else wants it. More than
every answer at its longest is never of use, so a small model takes little.
"""

import torch

from coterie.config import ModelConfig
from coterie.device import available_memory
from coterie.errors import ResourceError
from coterie.server.settings import Settings
from coterie.sizes import cache_bytes

__all__ = ["cache_tokens"]

_SHARE = 4  # of the free memory, one part
_CARD_SHARE, _CARD_RESERVE = 0.95, 3 << 30  # of a card's free memory; bytes that passes and graphs may take
_SCALE_BYTES = 4  # of an 8-bit head: one float32


def cache_tokens(config: ModelConfig, settings: Settings, dtype: torch.dtype, device: torch.device) -> int:
    """The size in tokens. Raises `ResourceError` where not even a short text would fit."""
    if settings.cache_tokens is not None:
        return settings.cache_tokens
    memory = _default(device) if settings.cache_gb is None else int(settings.cache_gb * 1e9)
    n_tokens = memory // bytes_per_token(config, settings.cache_type, dtype)
    if n_tokens < min(256, config.max_position_embeddings):
        raise ResourceError(
            f"the cache of keys and values would hold {n_tokens} tokens in {memory / 1e9:.3g} GB: give it more with "
            "--cache-gb, or half as much does with cache_type = 'int8' in the file of --config"
        )
    return min(n_tokens, settings.max_live * config.max_position_embeddings)


def _default(device: torch.device) -> int:
    free = available_memory(device)
    if device.type != "cuda":
        return free // _SHARE
    return int(max(free // _SHARE, free * _CARD_SHARE - _CARD_RESERVE))


def bytes_per_token(config: ModelConfig, cache_type: str, dtype: torch.dtype) -> int:
    """Mixtral-8x7B in bfloat16: 2 · 32 layers · 8 heads · 128 · 2 bytes = 131,072; in int8 67,584."""
    if cache_type != "int8":
        return cache_bytes(config, 1, bytes_per_number=dtype.itemsize)
    n_numbers = cache_bytes(config, 1, bytes_per_number=1)
    return n_numbers + n_numbers // config.head_dim * _SCALE_BYTES
