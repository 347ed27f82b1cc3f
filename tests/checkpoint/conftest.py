"""Tiny model folders in every layout, written independently of the name tables under test (plain dictionaries)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from coterie.checkpoint.convert import convert
from coterie.checkpoint.huggingface import config_to_json, save_huggingface
from coterie.checkpoint.mistral import config_to_params
from coterie.config import ModelConfig
from coterie.model import Transformer

Tensors = dict[str, Tensor]


def make_config(**changes: Any) -> ModelConfig:
    """Two layers, four experts, four query heads on two key heads of width 6 (not hidden_size / heads)."""
    values = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
        "torch_dtype": "float32",
    }
    return ModelConfig(**{**values, **changes})


def random_tensors(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """Canonical name -> random weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = Transformer(config, dtype).tensors()
    return {name: torch.randn(t.shape, generator=generator).to(dtype) for name, t in shapes.items()}


def huggingface_tensors(config: ModelConfig, tensors: Tensors, *, fused: bool = False) -> Tensors:
    """The same weights under transformers' names, version 4 or (fused) version 5."""
    named = {"model.embed_tokens.weight": tensors["embed"], "model.norm.weight": tensors["norm"]}
    if "head" in tensors:
        named["lm_head.weight"] = tensors["head"]
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        named |= {f"{theirs}.self_attn.{x}_proj.weight": tensors[f"{ours}.attention.{x}"] for x in "qkvo"}
        named[f"{theirs}.input_layernorm.weight"] = tensors[f"{ours}.attention_norm"]
        named[f"{theirs}.post_attention_layernorm.weight"] = tensors[f"{ours}.moe_norm"]
        if config.num_local_experts is None:
            for x in ("gate", "up", "down"):
                named[f"{theirs}.mlp.{x}_proj.weight"] = tensors[f"{ours}.feed_forward.{x}"]
            continue
        gate_up, down = tensors[f"{ours}.moe.experts.gate_up"], tensors[f"{ours}.moe.experts.down"]
        router = tensors[f"{ours}.moe.router"]
        if fused:
            named[f"{theirs}.mlp.gate.weight"] = router
            named |= {f"{theirs}.mlp.experts.gate_up_proj": gate_up, f"{theirs}.mlp.experts.down_proj": down}
            continue
        named[f"{theirs}.block_sparse_moe.gate.weight"] = router
        for e in range(config.num_local_experts):
            w1, w3 = gate_up[e].chunk(2)
            for w, t in (("w1", w1), ("w2", down[e]), ("w3", w3)):
                named[f"{theirs}.block_sparse_moe.experts.{e}.{w}.weight"] = t
    return named


def mistral_tensors(config: ModelConfig, tensors: Tensors) -> Tensors:
    """The same weights under Mistral's names, query and key rows interleaved."""

    def interleaved(t: Tensor, n_heads: int) -> Tensor:
        return t.view(n_heads, 2, config.head_dim // 2, -1).transpose(1, 2).reshape(t.shape)

    named = {"tok_embeddings.weight": tensors["embed"], "norm.weight": tensors["norm"]}
    if "head" in tensors:
        named["output.weight"] = tensors["head"]
    for i in range(config.num_hidden_layers):
        at = f"layers.{i}"
        named[f"{at}.attention.wq.weight"] = interleaved(tensors[f"{at}.attention.q"], config.num_attention_heads)
        named[f"{at}.attention.wk.weight"] = interleaved(tensors[f"{at}.attention.k"], config.num_key_value_heads)
        named |= {f"{at}.attention.w{x}.weight": tensors[f"{at}.attention.{x}"] for x in "vo"}
        named[f"{at}.attention_norm.weight"] = tensors[f"{at}.attention_norm"]
        named[f"{at}.ffn_norm.weight"] = tensors[f"{at}.moe_norm"]
        if config.num_local_experts is None:
            for w, x in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                named[f"{at}.feed_forward.{w}.weight"] = tensors[f"{at}.feed_forward.{x}"]
            continue
        named[f"{at}.feed_forward.gate.weight"] = tensors[f"{at}.moe.router"]
        for e in range(config.num_local_experts):
            w1, w3 = tensors[f"{at}.moe.experts.gate_up"][e].chunk(2)
            for w, t in (("w1", w1), ("w2", tensors[f"{at}.moe.experts.down"][e]), ("w3", w3)):
                named[f"{at}.feed_forward.experts.{e}.{w}.weight"] = t
    return named


def gguf_tensors(config: ModelConfig, tensors: Tensors, experts: str) -> dict[str, np.ndarray]:
    """The same weights under GGUF's names: `experts` merged, gate_up (merged too) or single."""
    mistral = {key: t.float().numpy() for key, t in mistral_tensors(config, tensors).items()}
    names = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    names |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    named = {"token_embd.weight": mistral["tok_embeddings.weight"], "output_norm.weight": mistral["norm.weight"]}
    if "output.weight" in mistral:
        named["output.weight"] = mistral["output.weight"]
    for i in range(config.num_hidden_layers):
        old, new = f"layers.{i}", f"blk.{i}"
        named[f"{new}.attn_norm.weight"] = mistral[f"{old}.attention_norm.weight"]
        named[f"{new}.ffn_norm.weight"] = mistral[f"{old}.ffn_norm.weight"]
        named |= {f"{new}.{names[w]}.weight": mistral[f"{old}.attention.{w}.weight"] for w in ("wq", "wk", "wv", "wo")}
        if config.num_local_experts is None:
            named |= {f"{new}.{names[w]}.weight": mistral[f"{old}.feed_forward.{w}.weight"] for w in ("w1", "w2", "w3")}
            continue
        named[f"{new}.ffn_gate_inp.weight"] = mistral[f"{old}.feed_forward.gate.weight"]
        each = {
            w: [mistral[f"{old}.feed_forward.experts.{e}.{w}.weight"] for e in range(config.num_local_experts)]
            for w in ("w1", "w2", "w3")
        }
        if experts == "single":
            named |= {f"{new}.{names[w]}.{e}.weight": t for w, list_ in each.items() for e, t in enumerate(list_)}
        else:
            named[f"{new}.ffn_down_exps.weight"] = np.stack(each["w2"])
            gate, up = np.stack(each["w1"]), np.stack(each["w3"])
            if experts == "gate_up":
                named[f"{new}.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
            else:
                named |= {f"{new}.ffn_gate_exps.weight": gate, f"{new}.ffn_up_exps.weight": up}
    return named


def from_gguf(config: ModelConfig, named: Tensors, experts: str) -> Tensors:
    """The inverse: canonical tensors of what a file holds."""

    def half_split(t: Tensor, n_heads: int) -> Tensor:
        return t.view(n_heads, config.head_dim // 2, 2, -1).transpose(1, 2).reshape(t.shape)

    c = config
    found = {"embed": named.get("token_embd.weight"), "norm": named.get("output_norm.weight")}
    found |= {"head": named["output.weight"]} if "output.weight" in named else {}
    for i in range(c.num_hidden_layers):
        at, to = f"blk.{i}", f"layers.{i}"
        found[f"{to}.attention.q"] = half_split(named[f"{at}.attn_q.weight"], c.num_attention_heads)
        found[f"{to}.attention.k"] = half_split(named[f"{at}.attn_k.weight"], c.num_key_value_heads)
        found |= {
            f"{to}.attention.v": named[f"{at}.attn_v.weight"],
            f"{to}.attention.o": named[f"{at}.attn_output.weight"],
        }
        found |= {
            f"{to}.attention_norm": named[f"{at}.attn_norm.weight"],
            f"{to}.moe_norm": named[f"{at}.ffn_norm.weight"],
        }
        if c.num_local_experts is None:
            found |= {f"{to}.feed_forward.{x}": named[f"{at}.ffn_{x}.weight"] for x in ("gate", "up", "down")}
            continue
        found[f"{to}.moe.router"] = named[f"{at}.ffn_gate_inp.weight"]
        parts = {}
        for x in ("gate", "up", "down"):
            if experts == "single":
                parts[x] = torch.stack([named[f"{at}.ffn_{x}.{e}.weight"] for e in range(c.num_local_experts)])
            elif x == "down" or experts == "merged":
                parts[x] = named[f"{at}.ffn_{x}_exps.weight"]
        both = (
            named[f"{at}.ffn_gate_up_exps.weight"]
            if experts == "gate_up"
            else torch.cat([parts["gate"], parts["up"]], 1)
        )
        found |= {f"{to}.moe.experts.gate_up": both, f"{to}.moe.experts.down": parts["down"]}
    return found


def to_blocks(value: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A matrix in the type; norms and routers (few rows) as F32; K-quants as random blocks with finite scales."""
    number = gguf.GGMLQuantizationType[kind]
    if value.ndim == 1 or (value.ndim == 2 and len(value) < 8):
        return value, gguf.GGMLQuantizationType.F32
    if not kind.endswith("_K"):
        return gguf.quantize(value, number), number
    size, nbytes = gguf.GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(value.size)
    raw = rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] // size, nbytes), dtype=np.uint8)
    for at in {"Q2_K": (81, 83), "Q3_K": (109,), "Q6_K": (209,)}.get(kind, (1, 3)):
        raw[..., at] = raw[..., at] & 0x83 | 0x14  # magnitudes of about 0.001
    return raw.reshape(*value.shape[:-1], -1), number


def add_gguf_keys(writer: gguf.GGUFWriter, config: ModelConfig, vocabulary: bool) -> None:
    c = config
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    if c.num_local_experts is not None:
        writer.add_expert_count(c.num_local_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
    if vocabulary:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁"]
        tokens += [chr(0x4E00 + i) for i in range(c.vocab_size - len(tokens))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)


class Tiny:
    """A tiny model and ways to write it; `tensors` are the canonical ones a reader must find."""

    def __init__(self, root: Path, dtype: torch.dtype = torch.float32, **changes: Any):
        self.root = root
        self.config = make_config(torch_dtype=str(dtype).removeprefix("torch."), **changes)
        self.tensors = random_tensors(self.config, dtype)

    def huggingface(
        self, name: str = "hf", *, fused: bool = False, n_files: int = 1, edit: Callable[[Tensors], None] | None = None
    ) -> Path:
        named = huggingface_tensors(self.config, self.tensors, fused=fused)
        return self._write(name, "model", "config.json", config_to_json(self.config), named, n_files, True, edit)

    def mistral(
        self,
        name: str = "mistral",
        *,
        n_files: int = 1,
        index: bool = False,
        edit: Callable[[Tensors], None] | None = None,
    ) -> Path:
        named = mistral_tensors(self.config, self.tensors)
        params = config_to_params(self.config)
        return self._write(name, "consolidated", "params.json", params, named, n_files, index, edit)

    def gguf(
        self,
        name: str = "model",
        *,
        kind: str = "F32",
        experts: str = "merged",
        n_files: int = 1,
        edit: Callable[[dict[str, Any]], None] | None = None,
        keys: dict[str, Any] | None = None,
        vocabulary: bool = False,
        kinds: dict[str, str] | None = None,
    ) -> tuple[Path, Tensors]:
        """A file by the gguf package's own writer, and the canonical tensors that it stands for, as float32.

        `kinds`: types of tensors whose name has this in it, where they are not `kind`.
        """
        named = gguf_tensors(self.config, self.tensors, experts)
        if edit is not None:
            edit(named)
        own = {key: k for key in named for part, k in (kinds or {}).items() if part in key}
        blocks = {key: to_blocks(value, own.get(key, kind)) for key, value in named.items()}
        paths = [self.root / f"{name}.gguf"]
        if n_files > 1:
            paths = [self.root / f"{name}-{i + 1:05}-of-{n_files:05}.gguf" for i in range(n_files)]
        for i, path in enumerate(paths):
            writer = gguf.GGUFWriter(path, "llama")
            if i == 0:
                add_gguf_keys(writer, self.config, vocabulary)
                for key, value in (keys or {}).items():
                    getattr(writer, f"add_{value[0]}")(key, value[1])
            if n_files > 1:
                writer.add_uint16("split.no", i)
                writer.add_uint16("split.count", n_files)
                writer.add_int32("split.tensors.count", len(blocks))
            for key, (raw, raw_type) in list(blocks.items())[i::n_files]:
                writer.add_tensor(key, raw, raw_dtype=raw_type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        if edit is not None:
            return paths[0], {}
        numbers = {key: torch.from_numpy(gguf.dequantize(*value).astype(np.float32)) for key, value in blocks.items()}
        return paths[0], from_gguf(self.config, numbers, experts)

    def _write(
        self,
        name: str,
        stem: str,
        config_name: str,
        config: dict[str, Any],
        named: Tensors,
        n_files: int,
        index: bool,
        edit: Callable[[Tensors], None] | None,
    ) -> Path:
        folder = self.root / name
        folder.mkdir()
        (folder / config_name).write_text(json.dumps(config))
        if edit is not None:
            edit(named)
        files = [f"{stem}.safetensors"]
        if n_files > 1:
            files = [f"{stem}-{i + 1:05}-of-{n_files:05}.safetensors" for i in range(n_files)]
        weight_map = {key: files[i % n_files] for i, key in enumerate(named)}
        for file in files:
            save_file({k: t.clone().contiguous() for k, t in named.items() if weight_map[k] == file}, folder / file)
        if index and n_files > 1:
            document = {"metadata": {}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(document))
        return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    def make(dtype: torch.dtype = torch.float32, **changes: Any) -> Tiny:
        return Tiny(tmp_path, dtype, **changes)

    return make


PACKED_KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    "tied": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True},
    "dense": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": None},
    "odd": {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2},  # its experts cannot be packed
    "few heads": {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1,
                  "head_dim": 6, "num_hidden_layers": 1},  # nor can attention.o, which has 18 inputs
}  # fmt: skip


@pytest.fixture(params=PACKED_KINDS)
def packable(request: pytest.FixtureRequest, make_model: Callable[..., Transformer], tmp_path: Path) -> Path:
    model = make_model(**{"num_experts_per_tok": 2, **PACKED_KINDS[request.param]})
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    return tmp_path / "source"


@pytest.fixture
def sparse(make_model: Callable[..., Transformer], tmp_path: Path, sentencepiece_bytes: bytes) -> Path:
    model = make_model(**PACKED_KINDS["sparse"], vocab_size=340)
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    (tmp_path / "source" / "tokenizer.model").write_bytes(sentencepiece_bytes)
    return tmp_path / "source"


@pytest.fixture
def packed(sparse: Path, tmp_path: Path) -> Path:
    convert(sparse, tmp_path / "packed", to="packed", type="int4")
    return tmp_path / "packed"
