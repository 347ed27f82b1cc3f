"""Layers whose weights stay packed, and `install`, which puts them in a model's place for its plain ones.

They take the three places that may be swapped: the experts, a Linear, a Projection; and the embedding. With the native
kernels they multiply the packed bytes; without them each call makes plain numbers of what it needs, slowly and exactly.
A part may also be a plain tensor (a router that stays float32, weights that could not be packed). On a card other
layers take these places: `card_layers.py`.
Shapes: T tokens, K slots a token, E experts, D model width, F expert width, N outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels import combine, cpu, gated_ffn, is_native, rms_norm
from coterie.quant.card import CardPart
from coterie.quant.card_layers import CardEmbedding, CardExperts, CardLinear
from coterie.quant.tensor import PackedTensor, join_halves
from coterie.routing import Assignment

__all__ = ["PackedEmbedding", "PackedExperts", "PackedLinear", "PackedProjection", "Part", "install", "install_on_card"]


class _Matrix(Protocol):
    """`PackedTensor`, or another form of a matrix [N, K] that can be made plain."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def dequantise(self) -> Tensor: ...


Part = Tensor | _Matrix
Take = Callable[[str], Any]  # a part by its name


def _plain(part: Part) -> Tensor:
    return part.float() if isinstance(part, Tensor) else part.dequantise()


class PackedLinear(nn.Module):
    """Matrices side by side: x [T, D] -> [T, N_1 + N_2 + ...]."""

    def __init__(self, parts: Sequence[Part]):
        super().__init__()
        self.parts = tuple(parts)
        self.n_outputs = sum(part.shape[0] for part in parts)
        self.handle = cpu.matrix_handle(self.parts) if cpu.can_hold(self.parts) else None

    def forward(self, x_TD: Tensor, norm: tuple[Tensor, float] | None = None) -> Tensor:
        if self.handle is not None and is_native(x_TD):
            return cpu.linear(x_TD, self.handle, self.n_outputs, norm)
        x_TD = x_TD if norm is None else rms_norm(x_TD, *norm)
        return torch.cat([functional.linear(x_TD, _plain(part)) for part in self.parts], -1)


class PackedProjection(nn.Module):
    """linear(norm(x)) in one call."""

    def __init__(self, norm: nn.Module, linear: nn.Module):
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TN: Tensor = self.linear(x_TD, (self.norm.get_parameter("weight"), self.norm.eps))
        return y_TN


class PackedEmbedding(nn.Module):
    """Rows of a packed table, as float32."""

    def __init__(self, table: Tensor | PackedTensor):
        super().__init__()
        self.table = table

    def forward(self, ids_T: Tensor) -> Tensor:
        if isinstance(self.table, Tensor):
            return functional.embedding(ids_T, self.table).float()
        return cpu.embed(ids_T, self.table) if cpu.can_hold([self.table]) else self.table.rows(ids_T)


class PackedExperts(nn.Module):
    """The experts' side of the seam: `gate_up` and `down` of each, gate and up rows alternating as packed ones do."""

    def __init__(self, gate_up: Sequence[Part], down: Sequence[Part]):
        super().__init__()
        self.gate_up, self.down = tuple(gate_up), tuple(down)
        self.width = down[0].shape[1]
        both = [*self.gate_up, *self.down]
        self.handle = cpu.expert_handle(self.gate_up, self.down) if cpu.can_hold(both) else None

    def forward(self, x_TD: Tensor, routing: Assignment) -> Tensor:
        """Σ over slots 0..K-1, in that order and in float32, of weight · expert(x); a row of -1 gives 0."""
        ids_TK, weights_TK = routing.ids_TK.contiguous(), routing.weights_TK.contiguous()
        if self.handle is not None and is_native(x_TD):
            return cpu.experts(x_TD.contiguous(), ids_TK, weights_TK, self.handle, self.width)
        out_TKD = x_TD.new_zeros(*ids_TK.shape, x_TD.shape[1])
        for e in set(ids_TK.flatten().tolist()):
            if e >= 0:
                at = (ids_TK == e).nonzero(as_tuple=True)
                out_TKD[at] = gated_ffn(x_TD[at[0]], _gate_first(self.gate_up[e]), _plain(self.down[e]))
        return combine(out_TKD, weights_TK)


def _gate_first(part: Part) -> Tensor:
    return part.float() if isinstance(part, Tensor) else join_halves(part.dequantise())


def install(model: nn.Module, parts: Mapping[str, Part]) -> nn.Module:
    """Put `parts`, by canonical name, in their places of a model made on the device "meta"; returns the model.

    Norms and routers are float32 tensors, and so are the activations. Experts come one by one
    (`layers.3.moe.experts.5.gate_up`, packed with gate and up rows alternating; `.down`), other matrices as in a file.
    """

    def experts(take: Take, at: str, n_experts: int) -> nn.Module:
        each = ([take(f"{at}.{e}.{name}") for e in range(n_experts)] for name in ("gate_up", "down"))
        return PackedExperts(*each)

    made = _Makers(PackedLinear, PackedEmbedding, experts)
    return _installed(model, parts, made, torch.float32, torch.float16)


def install_on_card(model: nn.Module, parts: Mapping[str, CardPart], dtype: torch.dtype) -> nn.Module:
    """`install` of what `card.to_card` gives; activations, keys and values are of `dtype`, routers float32."""
    made = _Makers(
        CardLinear,
        lambda table: CardEmbedding(table, dtype),
        lambda take, at, _: CardExperts(take(f"{at}.gate_up"), take(f"{at}.down")),
    )
    return _installed(model, parts, made, dtype, dtype)


class _Makers(NamedTuple):
    """How the parts of a model are made, from weights of either kind."""

    linear: Callable[[list[Any]], nn.Module]
    embedding: Callable[[Any], nn.Module]
    experts: Callable[[Take, str, int], nn.Module]


def _installed(
    model: nn.Module, parts: Mapping[str, Any], made: _Makers, dtype: torch.dtype, cache_dtype: torch.dtype
) -> nn.Module:
    left = dict(parts)
    take = left.pop

    def number(name: str, dtype: torch.dtype = dtype) -> nn.Parameter:
        value = take(name)
        assert isinstance(value, Tensor)
        return nn.Parameter(value.to(dtype), requires_grad=False)

    embed = take("embed")
    model.embed = made.embedding(embed)
    for i, block in enumerate(model.layers):  # type: ignore[arg-type]
        at = f"layers.{i}"
        attention, ff = block.attention, block.feed_forward
        attention.qkv.norm.weight = number(f"{at}.attention_norm")
        qkv = made.linear([take(f"{at}.attention.{name}") for name in "qkv"])
        attention.qkv = PackedProjection(attention.qkv.norm, qkv)
        attention.o = made.linear([take(f"{at}.attention.o")])
        if block.is_sparse:
            ff.norm.weight = number(f"{at}.moe_norm")
            ff.router.weight = number(f"{at}.moe.router", torch.float32)
            ff.experts = made.experts(take, f"{at}.moe.experts", len(ff.router.weight))
        else:
            ff.gate_up.norm.weight = number(f"{at}.moe_norm")
            gate_and_up = made.linear([take(f"{at}.feed_forward.{name}") for name in ("gate", "up")])
            ff.gate_up = PackedProjection(ff.gate_up.norm, gate_and_up)
            ff.down = made.linear([take(f"{at}.feed_forward.down")])
    head = model.head
    head.norm.weight = number("norm")  # type: ignore[union-attr]
    model.head = PackedProjection(head.norm, made.linear([left.pop("head", embed)]))  # type: ignore[arg-type]
    model.cache_dtype = cache_dtype  # type: ignore[assignment]
    assert not left, f"parts without a place: {sorted(left)[:3]}"
    return model.eval()
