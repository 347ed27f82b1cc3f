"""The rename tables: which stretch of which canonical tensor a tensor of a file holds. Nowhere else are names mapped.

Every name of every format lands on one contiguous stretch of a canonical tensor (row-major), so a reader never needs
to gather: of `moe.experts.gate_up` [E, 2F, D] expert e's gate (w1) starts at element e·2F·D and its up (w3) F·D
later. With E=8, F=4, D=2, expert 3's w3 is the 8 elements from 3·2·4·2 + 4·2 = 56. w1 is gate, w3 is up, w2 is down.
Mistral's files keep the query and key rows of a head interleaved (0, P/2, 1, P/2+1, ...); `Place.n_heads` marks them.
Shapes: D model width, F expert width, E experts, H query heads, G key/value heads, P head width, V vocabulary.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from coterie.config import ModelConfig

__all__ = ["Naming", "Place", "canonical_shapes", "is_ignorable", "n_places", "naming_of", "places", "tied_head"]

Naming = Literal["huggingface", "huggingface_fused", "mistral"]

_OUTER: dict[str, tuple[str, str]] = {  # canonical: (Hugging Face, Mistral)
    "embed": ("model.embed_tokens.weight", "tok_embeddings.weight"),
    "norm": ("model.norm.weight", "norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}
_LAYER: dict[str, tuple[str, str]] = {
    "attention.q": ("self_attn.q_proj.weight", "attention.wq.weight"),
    "attention.k": ("self_attn.k_proj.weight", "attention.wk.weight"),
    "attention.v": ("self_attn.v_proj.weight", "attention.wv.weight"),
    "attention.o": ("self_attn.o_proj.weight", "attention.wo.weight"),
    "attention_norm": ("input_layernorm.weight", "attention_norm.weight"),
    "moe_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "feed_forward.gate": ("mlp.gate_proj.weight", "feed_forward.w1.weight"),
    "feed_forward.up": ("mlp.up_proj.weight", "feed_forward.w3.weight"),
    "feed_forward.down": ("mlp.down_proj.weight", "feed_forward.w2.weight"),
    "moe.router": ("block_sparse_moe.gate.weight", "feed_forward.gate.weight"),
}
_FUSED = {  # transformers 5, where it differs from version 4
    "moe.router": "mlp.gate.weight",
    "moe.experts.gate_up": "mlp.experts.gate_up_proj",
    "moe.experts.down": "mlp.experts.down_proj",
}
_EXPERT = ("block_sparse_moe.experts.{e}.{w}.weight", "feed_forward.experts.{e}.{w}.weight")
_IGNORABLE = re.compile(r"(model\.)?(layers\.\d+\.(self_attn|attention)\.)?rotary_emb\.inv_freq|rope\.freqs")


@dataclass(frozen=True, slots=True)
class Place:
    """`shape` elements of the canonical tensor `name`, from `first` on; `n_heads` > 0: rows interleaved per head."""

    name: str
    first: int
    shape: tuple[int, ...]
    n_heads: int = 0

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def canonical_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every canonical tensor of a model and its shape, in the order of `Transformer.tensors()`."""
    c = config
    D, F, E = c.hidden_size, c.intermediate_size, c.num_local_experts
    n_q, n_kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    yield "embed", (c.vocab_size, D)
    for i in range(c.num_hidden_layers):
        at = f"layers.{i}."
        yield from ((f"{at}attention.{n}", (rows, D)) for n, rows in (("q", n_q), ("k", n_kv), ("v", n_kv)))
        yield f"{at}attention.o", (D, n_q)
        yield f"{at}attention_norm", (D,)
        yield f"{at}moe_norm", (D,)
        if E is None:
            yield from ((f"{at}feed_forward.{n}", (F, D)) for n in ("gate", "up"))
            yield f"{at}feed_forward.down", (D, F)
        else:
            yield f"{at}moe.router", (E, D)
            yield f"{at}moe.experts.gate_up", (E, 2 * F, D)
            yield f"{at}moe.experts.down", (E, D, F)
    yield "norm", (D,)
    if not c.tie_word_embeddings:
        yield "head", (c.vocab_size, D)


def places(config: ModelConfig, naming: Naming) -> Iterator[tuple[str, Place]]:
    """Every tensor name that a file of this naming must hold, with the place that it fills."""
    for name, shape in canonical_shapes(config):
        layer, suffix = _split(name)
        if naming != "huggingface_fused" and suffix.startswith("moe.experts."):
            yield from _per_expert(name, layer, shape, naming)
        else:
            n_heads = _interleaved_heads(config, suffix) if naming == "mistral" else 0
            yield _file_name(layer, suffix, naming), Place(name, 0, shape, n_heads)


def n_places(config: ModelConfig, naming: Naming) -> int:
    """How many names `places` yields, without listing them (a hostile config may ask for millions)."""
    experts = config.num_local_experts
    per_layer = 9 if experts is None else (9 if naming == "huggingface_fused" else 7 + 3 * experts)
    return config.num_hidden_layers * per_layer + (2 if config.tie_word_embeddings else 3)


def tied_head(config: ModelConfig, naming: Naming) -> tuple[str, Place]:
    """The name under which a file of tied embeddings may repeat them, and their place."""
    return _file_name("", "head", naming), Place("embed", 0, (config.vocab_size, config.hidden_size))


def naming_of(names: Iterable[str]) -> Naming:
    """Which of the three namings a folder's tensor names follow; per-expert Hugging Face where nothing tells."""
    for name in names:
        if name.endswith(tuple(_FUSED.values())):
            return "huggingface_fused"
        if name == _OUTER["embed"][1] or name.startswith("layers."):
            return "mistral"
    return "huggingface"


def is_ignorable(name: str) -> bool:
    """Whether a tensor holds only what the configuration implies (rotary frequencies that old writers saved)."""
    return _IGNORABLE.fullmatch(name) is not None


def _split(name: str) -> tuple[str, str]:
    """`layers.3.attention.q` -> `("layers.3.", "attention.q")`; `norm` -> `("", "norm")`."""
    if not name.startswith("layers."):
        return "", name
    _, number, suffix = name.split(".", 2)
    return f"layers.{number}.", suffix


def _file_name(layer: str, suffix: str, naming: Naming) -> str:
    column = 1 if naming == "mistral" else 0
    if not layer:
        return _OUTER[suffix][column]
    prefix = layer if naming == "mistral" else f"model.{layer}"
    if naming == "huggingface_fused" and suffix in _FUSED:
        return prefix + _FUSED[suffix]
    return prefix + _LAYER[suffix][column]


def _per_expert(name: str, layer: str, shape: tuple[int, ...], naming: Naming) -> Iterator[tuple[str, Place]]:
    n_experts, rows, columns = shape
    template = layer + _EXPERT[1] if naming == "mistral" else f"model.{layer}" + _EXPERT[0]
    parts = ("w1", "w3") if name.endswith("gate_up") else ("w2",)
    rows //= len(parts)
    for e in range(n_experts):
        for i, w in enumerate(parts):
            first = (e * len(parts) + i) * rows * columns
            yield template.format(e=e, w=w), Place(name, first, (rows, columns))


def _interleaved_heads(config: ModelConfig, suffix: str) -> int:
    heads = {"attention.q": config.num_attention_heads, "attention.k": config.num_key_value_heads}
    return heads.get(suffix, 0)
