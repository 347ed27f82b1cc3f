"""Tiny model folders in every layout, written independently of the name tables under test (plain dictionaries)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from coterie.checkpoint.huggingface import config_to_json
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
