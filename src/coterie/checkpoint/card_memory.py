"""Whether a model fits a card, and what would: which bits, and how long a context is left for.

Example, Mixtral 8x7B on 80 GB: as bfloat16 it needs 93 GB; int8 (50 GB) fits, with room for 200,000 tokens of keys and
values. Exact for our own types, from the configuration alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.checkpoint.numbers import size_text
from coterie.config import ModelConfig
from coterie.device import available_memory, has_fp8
from coterie.errors import ResourceError
from coterie.quant.recipe import TYPES, Recipe
from coterie.sizes import cache_bytes, parameters

if TYPE_CHECKING:
    import torch

__all__ = ["CARD_RESERVE", "card_advice", "card_need", "require_card_memory", "what_fits"]

CARD_RESERVE = 2 << 30  # bytes beside weights and cache: the passes' temporaries, graphs, the libraries
_SHORT = 4096  # tokens of cache without which a model is of little use


def card_need(config: ModelConfig, type: str) -> int:
    """Bytes of the weights on a card as one of `TYPES` or "fp8"."""
    import torch

    from coterie.kernels.packed import FP8
    from coterie.quant.card import card_bytes, layout_of

    c, n_experts = config, config.num_local_experts or 1
    recipe = Recipe.of("int8" if type == "fp8" else type)
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    matrices = {  # of one layer, but for the last two
        "attention": [(query + 2 * key, c.hidden_size), (c.hidden_size, query)],
        "experts": [(2 * c.intermediate_size, c.hidden_size), (c.hidden_size, c.intermediate_size)] * n_experts,
        "embedding": [(c.vocab_size, c.hidden_size)],
        "head": [] if c.tie_word_embeddings else [(c.vocab_size, c.hidden_size)],
    }
    total = parameters(c).norms * 2 + parameters(c).router * 4
    for part, shapes in matrices.items():
        format = recipe.format_of(part)
        assert format is not None
        layout = layout_of(format) if type != "fp8" else torch.bfloat16 if part == "embedding" else FP8
        times = c.num_hidden_layers if part in ("attention", "experts") else 1
        total += times * sum(card_bytes(layout, *shape) for shape in shapes)
    return total


def what_fits(
    config: ModelConfig, there: int, below: int | None = None, *, fp8: bool = True
) -> list[tuple[str, int, int]]:
    """(type, bytes of weights, tokens of cache left), most bits first, of those that leave room for a short text."""
    found = []
    for type in ("fp8", *TYPES) if fp8 else TYPES:
        need = card_need(config, type)
        tokens = (there - CARD_RESERVE - need) // cache_bytes(config, 1)
        if tokens >= min(_SHORT, config.max_position_embeddings) and (below is None or need < below):
            found.append((type, need, tokens))
    return found


def card_advice(config: ModelConfig, there: int, need: int, *, fp8: bool = True) -> str:
    """What to do where weights of `need` bytes do not fit; the end of a sentence."""
    fitting = what_fits(config, there, need, fp8=fp8)
    if not fitting:
        return "no number of bits makes it fit: use a larger card, the CPU (device cpu), or a smaller model"
    named = [
        f"{type} ({size_text(n_bytes)}, with room for {_context(config, tokens)})" for type, n_bytes, tokens in fitting
    ]
    return f"load it with quantize, as {' or '.join(named)}, or use the CPU (device cpu)"


def _context(config: ModelConfig, tokens: int) -> str:
    longest = config.max_position_embeddings
    if tokens >= 2 * longest:
        return f"{tokens // longest} contexts of {longest:,} tokens"
    return f"{tokens:,} tokens of context"


def require_card_memory(path: Path, config: ModelConfig, need: int, name: str, device: "torch.device") -> None:
    """`ResourceError` with the need, what is there and what fits."""
    there = available_memory(device)
    if need + CARD_RESERVE > there:
        raise ResourceError(
            f"{path} needs {size_text(need)} for its weights as {name}, and {size_text(CARD_RESERVE)} to work in, but "
            f"{device} has {size_text(there)} free; "
            f"{card_advice(config, there, need, fp8=has_fp8(device))}"
        )
