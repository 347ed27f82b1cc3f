"""Arithmetic on a `ModelConfig`: parameters, bytes, operations, what fits in a given memory. No torch, exact integers.

Worked example, Mixtral 8x7B: 46,702,792,704 parameters, of which a token uses 12,879,925,248 (two experts of eight in
each of 32 layers); C(8,2) = 28 pairs of experts in a layer, so 28^32 paths; 131,072 bytes of cache per token.
"""

import math
from dataclasses import asdict, dataclass

from coterie.config import ModelConfig

__all__ = [
    "SCALE_GROUP",
    "Fit",
    "Parameters",
    "active_parameters",
    "cache_bytes",
    "expansion",
    "fit",
    "operations_per_token",
    "parameters",
    "paths_per_layer",
    "query_heads_per_key_head",
    "weight_bytes",
]

SCALE_GROUP = 32  # weights that share one 16-bit scale at 8 and 4 bits, as GGUF's Q8_0 and Q4_0 have it


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts by part, over all layers. `feedforward` is the experts of a sparse model, the one block of a dense one."""

    embedding: int
    attention: int
    router: int
    feedforward: int
    norms: int
    head: int  # 0 where it is the embedding, tied

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What of a model a memory holds: `experts` per layer beside what all tokens use, `tokens` of cache."""

    bits: int
    needed: int  # bytes of all weights
    without_experts: int  # bytes of the weights that every token uses
    fits: bool
    experts: int  # 0 .. num_local_experts; for a dense model 0
    tokens: int  # 0 unless all weights fit


def parameters(config: ModelConfig) -> Parameters:
    """Every parameter of the model."""
    return _count(config, config.num_local_experts or 1)


def active_parameters(config: ModelConfig) -> Parameters:
    """The parameters that one token uses: all but the experts that were not chosen for it."""
    return _count(config, config.num_experts_per_tok if config.is_sparse else 1)


def _count(config: ModelConfig, n_experts: int) -> Parameters:
    D, L = config.hidden_size, config.num_hidden_layers
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return Parameters(
        embedding=config.vocab_size * D,
        attention=L * (2 * D * query + 2 * D * key),  # q and o, k and v
        router=L * _router(config),
        feedforward=L * n_experts * 3 * D * config.intermediate_size,  # gate, up, down
        norms=(2 * L + 1) * D,
        head=0 if config.tie_word_embeddings else config.vocab_size * D,
    )


def _router(config: ModelConfig) -> int:
    """The numbers of one router, a balancing bias included."""
    n_experts = config.num_local_experts
    shapes = config.router.tensor_shapes(n_experts, config.hidden_size) if n_experts else {}
    return sum(math.prod(shape) for shape in shapes.values())


def expansion(config: ModelConfig) -> float:
    """How much wider than the model one feed-forward block (one expert) is."""
    return config.intermediate_size / config.hidden_size


def query_heads_per_key_head(config: ModelConfig) -> int:
    """The group size of grouped-query attention; 1 is plain multi-head attention."""
    return config.num_attention_heads // config.num_key_value_heads


def paths_per_layer(config: ModelConfig) -> int:
    """Sets of experts a token can take in one layer, C(E, K); the paths are this to the power of the layers."""
    return math.comb(config.num_local_experts, config.num_experts_per_tok) if config.num_local_experts else 1


def weight_bytes(config: ModelConfig, bits: int, *, scale_group: int | None = None) -> int:
    """Bytes of all weights at `bits` each, plus a 16-bit scale for every `scale_group` of them where that is given."""
    return _bytes(parameters(config).total, bits, scale_group)


def _bytes(n: int, bits: int, scale_group: int | None) -> int:
    return -(-n * bits // 8) + (0 if scale_group is None else 2 * -(-n // scale_group))


def cache_bytes(config: ModelConfig, tokens: int, *, windowed: bool = True, bytes_per_number: int = 2) -> int:
    """Bytes of keys and values after `tokens` tokens of one sequence; with the window, at most the window's."""
    if windowed and config.sliding_window is not None:
        tokens = min(tokens, config.sliding_window)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number * tokens


def operations_per_token(config: ModelConfig, context: int = 0) -> int:
    """Floating-point operations of one token: 2 per active weight in a product, plus attention over `context` tokens.

    The embedding is a look-up and costs nothing; a tied head is a product all the same.
    """
    active = active_parameters(config)
    weights = active.attention + active.router + active.feedforward + config.vocab_size * config.hidden_size
    seen = min(context, config.sliding_window) if config.sliding_window is not None else context
    per_seen = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim  # q·k and p·v
    return 2 * weights + per_seen * seen


def fit(config: ModelConfig, memory: int, bits: int) -> Fit:
    """What of the model fits in `memory` bytes at `bits` per weight; below 16 bits with the scales of `SCALE_GROUP`."""
    group = SCALE_GROUP if bits < 16 else None
    needed = weight_bytes(config, bits, scale_group=group)
    n_experts = config.num_local_experts or 0
    one_each = _bytes(parameters(config).feedforward // (n_experts or 1), bits, group)  # one expert of every layer
    always = needed - one_each * n_experts
    room = max(0, memory - always)
    return Fit(
        bits=bits,
        needed=needed,
        without_experts=always,
        fits=needed <= memory,
        experts=min(n_experts, room // one_each),
        tokens=min(config.max_position_embeddings, max(0, memory - needed) // cache_bytes(config, 1)),
    )
