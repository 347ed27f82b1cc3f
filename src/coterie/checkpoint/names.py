"""The rename tables: which stretch of which canonical tensor a tensor of a file holds. Nowhere else are names mapped.

Every name of every format lands on contiguous stretches of a canonical tensor (row-major), so a reader never needs
to gather: of `moe.experts.gate_up` [E, 2F, D] expert e's gate (w1) starts at element e·2F·D and its up (w3) F·D
later. With E=8, F=4, D=2, expert 3's w3 is the 8 elements from 3·2·4·2 + 4·2 = 56. w1 is gate, w3 is up, w2 is down.
Mistral's files, and GGUF files, keep the query and key rows of a head interleaved (0, P/2, 1, P/2+1, ...);
`Place.n_heads` marks them. A GGUF tensor may hold all experts of a layer: its name comes once for each, in their order.
Shapes: D model width, F expert width, E experts, H query heads, G key/value heads, P head width, V vocabulary.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from coterie.config import ModelConfig

__all__ = [
    "Naming",
    "Place",
    "canonical_shapes",
    "file_shape",
    "is_exact",
    "is_ignorable",
    "n_places",
    "naming_of",
    "part_of",
    "places",
    "tied_head",
]

Naming = Literal["huggingface", "huggingface_fused", "mistral", "gguf", "gguf_gate_up", "gguf_per_expert"]

_OUTER: dict[str, tuple[str, str, str]] = {  # canonical: (Hugging Face, Mistral, GGUF)
    "embed": ("model.embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight"),
    "norm": ("model.norm.weight", "norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight", "output.weight"),
}
_LAYER: dict[str, tuple[str, str, str]] = {
    "attention.q": ("self_attn.q_proj.weight", "attention.wq.weight", "attn_q.weight"),
    "attention.k": ("self_attn.k_proj.weight", "attention.wk.weight", "attn_k.weight"),
    "attention.v": ("self_attn.v_proj.weight", "attention.wv.weight", "attn_v.weight"),
    "attention.o": ("self_attn.o_proj.weight", "attention.wo.weight", "attn_output.weight"),
    "attention_norm": ("input_layernorm.weight", "attention_norm.weight", "attn_norm.weight"),
    "moe_norm": ("post_attention_layernorm.weight", "ffn_norm.weight", "ffn_norm.weight"),
    "feed_forward.gate": ("mlp.gate_proj.weight", "feed_forward.w1.weight", "ffn_gate.weight"),
    "feed_forward.up": ("mlp.up_proj.weight", "feed_forward.w3.weight", "ffn_up.weight"),
    "feed_forward.down": ("mlp.down_proj.weight", "feed_forward.w2.weight", "ffn_down.weight"),
    "moe.router": ("block_sparse_moe.gate.weight", "feed_forward.gate.weight", "ffn_gate_inp.weight"),
}
_FUSED = {  # transformers 5, where it differs from version 4
    "moe.router": "mlp.gate.weight",
    "moe.experts.gate_up": "mlp.experts.gate_up_proj",
    "moe.experts.down": "mlp.experts.down_proj",
}
_EXPERT = ("block_sparse_moe.experts.{e}.{w}.weight", "feed_forward.experts.{e}.{w}.weight", "ffn_{part}.{e}.weight")
_MERGED = "ffn_{part}_exps.weight"
_WORDS = {"gate": "w1", "up": "w3", "down": "w2"}
_IGNORABLE = re.compile(
    r"(model\.)?(layers\.\d+\.(self_attn|attention)\.)?rotary_emb\.inv_freq|rope\.freqs|blk\.\d+\.attn_rot_embd\.weight"
)


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
            yield from ((f"{at}moe.router{n and f'.{n}'}", shape) for n, shape in c.router.tensor_shapes(E, D).items())
            yield f"{at}moe.experts.gate_up", (E, 2 * F, D)
            yield f"{at}moe.experts.down", (E, D, F)
    yield "norm", (D,)
    if not c.tie_word_embeddings:
        yield "head", (c.vocab_size, D)


def places(config: ModelConfig, naming: Naming) -> Iterator[tuple[str, Place]]:
    """Every tensor name that a file of this naming must hold, with the place that it fills, or its next part does."""
    for name, shape in canonical_shapes(config):
        layer, suffix = _split(name)
        if naming != "huggingface_fused" and suffix.startswith("moe.experts."):
            yield from _per_expert(name, layer, shape, naming)
        else:
            n_heads = 0 if naming.startswith("huggingface") else _interleaved_heads(config, suffix)
            yield _file_name(layer, suffix, naming), Place(name, 0, shape, n_heads)


def file_shape(name: str, filled: list[Place]) -> tuple[int, ...]:
    """The shape of the tensor `name` of a file that fills these places: with a dimension for experts where merged."""
    is_merged = name.endswith("_exps.weight")
    return (len(filled), *filled[0].shape) if is_merged else filled[0].shape


def part_of(name: str) -> str:
    """The part of a model that a canonical tensor belongs to, as `inspect` counts them."""
    if "norm" in name:
        return "norms"
    if ".moe.router" in name:
        return "router"
    names = {"embed": "embedding", "head": "head", "q": "attention", "k": "attention"}
    names |= {"v": "attention", "o": "attention"}
    return names.get(name.rpartition(".")[2], "feedforward")


def n_places(config: ModelConfig, naming: Naming) -> int:
    """How many places `places` yields, without listing them (a hostile config may ask for millions)."""
    experts = config.num_local_experts
    per_expert = 2 if naming == "gguf_gate_up" else 3
    n_router = len(config.router.tensor_shapes(experts or 0, 0))
    n_experts_parts = 2 if naming == "huggingface_fused" else per_expert * (experts or 0)
    per_layer = 9 if experts is None else 6 + n_router + n_experts_parts
    return config.num_hidden_layers * per_layer + (2 if config.tie_word_embeddings else 3)


def tied_head(config: ModelConfig, naming: Naming) -> tuple[str, Place]:
    """The name under which a file of tied embeddings may repeat them, and their place."""
    return _file_name("", "head", naming), Place("embed", 0, (config.vocab_size, config.hidden_size))


def naming_of(names: Iterable[str]) -> Naming:
    """Which of the namings tensor names follow; per-expert Hugging Face where nothing tells."""
    for name in names:
        if name.startswith("blk."):
            if name.endswith(_MERGED.format(part="gate_up")):
                return "gguf_gate_up"
            if name.endswith(_MERGED.format(part="gate")):
                return "gguf"
            if re.fullmatch(r"blk\.\d+\.ffn_gate\.\d+\.weight", name):
                return "gguf_per_expert"
        if name.endswith(tuple(_FUSED.values())):
            return "huggingface_fused"
        if name == _OUTER["embed"][1] or name.startswith("layers."):
            return "mistral"
    return "huggingface"


def is_exact(name: str) -> bool:
    """Whether a canonical tensor stays float32 in every file: a router's own numbers, where a bit moves tokens."""
    return ".moe.router." in name


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
    if not layer:
        return _OUTER[suffix][_column(naming)]
    if suffix.startswith("moe.router."):
        weight = _file_name(layer, "moe.router", naming)
        return weight.removesuffix("weight") + suffix.removeprefix("moe.router.")
    if naming == "huggingface_fused" and suffix in _FUSED:
        return _prefix(layer, naming) + _FUSED[suffix]
    return _prefix(layer, naming) + _LAYER[suffix][_column(naming)]


def _column(naming: Naming) -> int:
    return {"h": 0, "m": 1, "g": 2}[naming[0]]


def _prefix(layer: str, naming: Naming) -> str:
    """`layers.3.` in each dialect: `model.layers.3.`, `layers.3.`, `blk.3.`."""
    return (f"model.{layer}", layer, layer.replace("layers", "blk"))[_column(naming)]


def _per_expert(name: str, layer: str, shape: tuple[int, ...], naming: Naming) -> Iterator[tuple[str, Place]]:
    """The names of a layer's experts: expert by expert, but part by part where one tensor holds a part of all."""
    n_experts, rows, columns = shape
    whole = name.rpartition(".")[2]
    parts = ["gate", "up"] if whole == "gate_up" and naming != "gguf_gate_up" else [whole]
    rows //= len(parts)
    is_merged = naming in ("gguf", "gguf_gate_up")
    template = _prefix(layer, naming) + (_MERGED if is_merged else _EXPERT[_column(naming)])
    pairs = [(e, i) for e in range(n_experts) for i in range(len(parts))]
    for e, i in sorted(pairs, key=lambda pair: pair[1]) if is_merged else pairs:
        file_name = template.format(e=e, w=_WORDS.get(parts[i]), part=parts[i])
        yield file_name, Place(name, (e * len(parts) + i) * rows * columns, (rows, columns))


def _interleaved_heads(config: ModelConfig, suffix: str) -> int:
    heads = {"attention.q": config.num_attention_heads, "attention.k": config.num_key_value_heads}
    return heads.get(suffix, 0)
