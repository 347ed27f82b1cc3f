"""What the benchmarks share: arguments, interleaved rounds, medians, a table line, and the model that both sides run.

Both sides hold the same memory: transformers' parameters are made views of ours, so neither has the better cache.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch

from coterie.checkpoint.huggingface import config_to_json
from coterie.config import ModelConfig
from coterie.model import Transformer

__all__ = ["arguments", "interleave", "machine", "mixtral_config", "mixtral_of_transformers", "report", "users_adamw"]


def interleave(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each side's figure over `rounds`, one side after the other in every round; the first round warms up.

    Every second round runs backwards, so that none always runs in the memory that the same other one left behind.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name in sides if i % 2 else reversed(sides):
            value = sides[name]()
            if i:
                figures[name].append(value)
    return {name: statistics.median(values) for name, values in figures.items()}


def report(title: str, unit: str, medians: dict[str, float], ours: str, higher_is_better: bool = True) -> None:
    """One line a side, and the ratio of ours to the best of the others."""
    print(f"{title} ({unit})")
    for name, value in medians.items():
        print(f"  {name:<28} {value:10.2f}")
    peers = [v for name, v in medians.items() if name != ours]
    best = max(peers) if higher_is_better else min(peers)
    print(f"  ours / best peer             {medians[ours] / best:10.2f}\n", flush=True)


def machine() -> str:
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {versions}, {torch.get_num_threads()} threads"


def arguments(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser that shows the script's own docstring and knows `--rounds`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"measured, after one to warm up (default: {rounds})"
    )
    return parser


def mixtral_config(n_layers: int, scale: int = 1) -> ModelConfig:
    """Mixtral 8x7B with fewer layers; `scale` divides its widths, to see whether a script runs."""
    return ModelConfig(
        num_hidden_layers=n_layers,
        hidden_size=4096 // scale,
        intermediate_size=14336 // scale,
        vocab_size=32000 // scale,
        head_dim=128 // min(scale, 16),
    )


def mixtral_of_transformers(model: Transformer) -> Any:
    """transformers' Mixtral on the very tensors of `model`; its router in the model's dtype, as it has it."""
    from transformers import MixtralConfig, MixtralForCausalLM
    from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

    config = MixtralConfig(**{k: v for k, v in config_to_json(model.config).items() if k != "architectures"})
    with torch.device("meta"):
        theirs = MixtralForCausalLM(config)
    named = {_their_name(name): tensor.to(model.dtype) for name, tensor in model.tensors().items()}
    missing, extra = theirs.load_state_dict(named, strict=False, assign=True)
    assert not extra and set(missing) <= {"lm_head.weight"}, (missing, extra)
    theirs.tie_weights()
    theirs.model.rotary_emb = MixtralRotaryEmbedding(config)
    return theirs.eval()


def users_adamw(model: Any, *, lr: float, betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    """torch's fused AdamW as its users set it up: norms do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


_ENDS = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_IN_LAYER = {
    "attention_norm": "input_layernorm.weight", "moe_norm": "post_attention_layernorm.weight",
    "attention.q": "self_attn.q_proj.weight", "attention.k": "self_attn.k_proj.weight",
    "attention.v": "self_attn.v_proj.weight", "attention.o": "self_attn.o_proj.weight",
    "moe.router": "mlp.gate.weight", "moe.experts.gate_up": "mlp.experts.gate_up_proj",
    "moe.experts.down": "mlp.experts.down_proj",
}  # fmt: skip


def _their_name(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    _, layer, part = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_LAYER[part]}"
