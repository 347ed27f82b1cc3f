"""The decoder: embedding, blocks, and the head that the caller applies to the rows it needs.

`Transformer.tensors()` maps the canonical names of a checkpoint to the memory they live in, so a loader writes straight
into place: `layers.0.attention.k` is a slice of the fused `qkv` weight. Shapes: T tokens, D model width, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coterie.config import ModelConfig
from coterie.kernels import add, rotary_tables
from coterie.model.attention import Attention, KeyValueCache
from coterie.model.experts import Experts
from coterie.model.feedforward import FeedForward
from coterie.model.moe import MoE
from coterie.model.norm import Embedding, Linear, Projection, RMSNorm
from coterie.routing import Routing, Rows, build_router

__all__ = ["Block", "Output", "Transformer"]


@dataclass(frozen=True, slots=True)
class Output:
    """`hidden_TD` before the last norm (the head includes it), and one routing per sparse layer."""

    hidden_TD: Tensor
    routings: list[Routing]


class Block(nn.Module):
    """x + attention, then x + feed-forward; `feed_forward` is a MoE or a FeedForward."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.is_sparse = isinstance(feed_forward, MoE)

    def forward(
        self, x_TD: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache, rows: Rows | None
    ) -> tuple[Tensor, Routing | None]:
        x_TD = add(x_TD, self.attention(x_TD, rotary, cache))
        if not self.is_sparse:
            return add(x_TD, self.feed_forward(x_TD)), None
        y_TD, routing = self.feed_forward(x_TD, rows)
        return add(x_TD, y_TD), routing


class Transformer(nn.Module):
    """A decoder of the Mixtral family. Its parameters are uninitialised: a loader or a trainer fills them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"):
        super().__init__()
        self.config = config
        c = config

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def norm() -> RMSNorm:
            return RMSNorm(empty(c.hidden_size), c.rms_norm_eps)

        def router(layer: int, n_experts: int) -> nn.Module:
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            return build_router(
                c.router, n_experts=n_experts, width=c.hidden_size, top_k=c.num_experts_per_tok,
                renormalise=c.norm_topk_prob, layer=layer,
                new_tensor=lambda *shape: torch.empty(shape, dtype=exact, device=device),
            )  # fmt: skip

        def feed_forward(layer: int) -> nn.Module:
            if c.num_local_experts is None:
                gate_up = Projection(norm(), Linear(empty(2 * c.intermediate_size, c.hidden_size)))
                return FeedForward(gate_up, Linear(empty(c.hidden_size, c.intermediate_size)))
            experts = Experts(
                empty(c.num_local_experts, 2 * c.intermediate_size, c.hidden_size),
                empty(c.num_local_experts, c.hidden_size, c.intermediate_size),
            )
            return MoE(norm(), router(layer, c.num_local_experts), experts)

        def attention(layer: int) -> Attention:
            n_rows = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
            qkv = Projection(norm(), Linear(empty(n_rows, c.hidden_size)))
            o = Linear(empty(c.hidden_size, c.num_attention_heads * c.head_dim))
            return Attention(layer, qkv, o, c.num_attention_heads, c.num_key_value_heads, c.head_dim)

        self.embed = Embedding(empty(c.vocab_size, c.hidden_size))
        self.layers = nn.ModuleList(Block(attention(i), feed_forward(i)) for i in range(c.num_hidden_layers))
        head = Linear(self.embed.weight.data if c.tie_word_embeddings else empty(c.vocab_size, c.hidden_size))
        if c.tie_word_embeddings:
            head.weight = self.embed.weight
        self.head = Projection(norm(), head)
        self.cache_dtype = dtype  # of keys and values; packed weights set their own

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self._data("head.norm.weight").dtype

    @property
    def device(self) -> torch.device:
        return self._data("head.norm.weight").device

    def forward(self, ids_T: Tensor, positions_T: Tensor, cache: KeyValueCache, rows: Rows | None = None) -> Output:
        if self.config.router.needs_token_ids and (rows is None or rows.token_ids_T is None):
            rows = replace(rows or Rows(), token_ids_T=ids_T)
        x_TD = self.embed(ids_T)
        angle_dtype = torch.promote_types(x_TD.dtype, torch.float32)
        rotary = rotary_tables(positions_T, self.config.head_dim, self.config.rope_theta, angle_dtype)
        routings = []
        for block in self.layers:
            x_TD, routing = block(x_TD, rotary, cache, rows)
            if routing is not None:
                routings.append(routing)
        return Output(x_TD, routings)

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name -> the parameter or the slice of one that holds it, in file order."""
        named = {"embed": self._data("embed.weight")}
        for i, block in enumerate(self.layers):
            named |= self._attention_tensors(f"layers.{i}")
            named |= (self._sparse_tensors if block.is_sparse else self._dense_tensors)(f"layers.{i}")
        named["norm"] = self._data("head.norm.weight")
        if not self.config.tie_word_embeddings:
            named["head"] = self._data("head.linear.weight")
        return named

    def _data(self, path: str) -> Tensor:
        return self.get_parameter(path).data

    def _attention_tensors(self, layer: str) -> dict[str, Tensor]:
        c, at = self.config, f"{layer}.attention"
        n_q, n_kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        q, k, v = torch.split(self._data(f"{at}.qkv.linear.weight"), [n_q, n_kv, n_kv])
        named = {f"{at}.q": q, f"{at}.k": k, f"{at}.v": v, f"{at}.o": self._data(f"{at}.o.weight")}
        return named | {f"{layer}.attention_norm": self._data(f"{at}.qkv.norm.weight")}

    def _sparse_tensors(self, layer: str) -> dict[str, Tensor]:
        ff = f"{layer}.feed_forward"
        return {
            f"{layer}.moe_norm": self._data(f"{ff}.norm.weight"),
            **self._router_tensors(layer),
            f"{layer}.moe.experts.gate_up": self._data(f"{ff}.experts.gate_up"),
            f"{layer}.moe.experts.down": self._data(f"{ff}.experts.down"),
        }

    def _router_tensors(self, layer: str) -> dict[str, Tensor]:
        """The weight, and the parameters and buffers of its own that a kind has."""
        router = self.get_submodule(f"{layer}.feed_forward.router")
        assert self.config.num_local_experts is not None
        shapes = self.config.router.tensor_shapes(self.config.num_local_experts, self.config.hidden_size)
        return {f"{layer}.moe.router{name and f'.{name}'}": getattr(router, name or "weight").data for name in shapes}

    def _dense_tensors(self, layer: str) -> dict[str, Tensor]:
        ff = f"{layer}.feed_forward"
        gate, up = self._data(f"{ff}.gate_up.linear.weight").chunk(2)
        down = {f"{ff}.down": self._data(f"{ff}.down.weight")}
        return {f"{layer}.moe_norm": self._data(f"{ff}.gate_up.norm.weight"), f"{ff}.gate": gate, f"{ff}.up": up} | down
