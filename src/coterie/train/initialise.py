"""The weights a run starts from, and which of them Muon may update."""

import math

import torch

from coterie.model import Transformer

__all__ = ["initialise", "muon_matrices"]


def initialise(model: Transformer, *, std: float, seed: int) -> None:
    """Norms 1, matrices normal(0, std); the two that write to the residual stream std / √(2L) (GPT-2, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0)
                continue
            scale = residual if name.endswith(("attention.o.weight", "down", "down.weight")) else std
            p.copy_(torch.empty(p.shape).normal_(0.0, scale, generator=generator))


def muon_matrices(model: Transformer) -> dict[str, tuple[int, ...]]:
    """What Muon may update: the layers' matrices, but for routers, and the rows at which fused ones are cut apart."""
    c = model.config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    cuts = {"qkv.linear.weight": (q, kv, kv), "gate_up": (c.intermediate_size,) * 2}
    cuts["gate_up.linear.weight"] = cuts["gate_up"]
    return {
        name: next((rows for end, rows in cuts.items() if name.endswith(end)), ())
        for name, p in model.named_parameters()
        if name.startswith("layers.") and p.ndim > 1 and "router" not in name
    }
