"""One new token of one sequence on a CPU: the decoder of `transformer.py` written out for a single row.

Decoding a small model is a thousand small calls a token, and a fourth of its time goes into walking through modules,
their attributes and the shapes of batches. `SingleRow.of` takes the weights out of a plain model; the feed-forward part
stays what it is, a router and experts behind their one call. The numbers are the model's own.
Shapes: D model width, H query heads, G key/value heads, P head width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coterie.kernels import attention, rms_norm, rotary_tables, rotate
from coterie.model.attention import Attention, KeyValueCache
from coterie.model.moe import MoE
from coterie.model.norm import Linear, Projection, RMSNorm
from coterie.model.transformer import Block, Output, Transformer

__all__ = ["SingleRow"]


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm_D: Tensor
    qkv_ND: Tensor
    o_DN: Tensor
    moe_norm_D: Tensor
    router: nn.Module
    experts: nn.Module


class SingleRow:
    """`of(model)`, then call it as the model is called, with one id and one position."""

    def __init__(self, model: Transformer, layers: list[_Layer], head: tuple[Tensor, Tensor]):
        self._embed_VD, self._config, self._layers = model.embed, model.config, layers
        self._norm_D, self._head_VD = head

    @staticmethod
    def of(model: nn.Module) -> "SingleRow | None":
        """None where the model is not on a CPU, is dense, or has a part that another was put in place of."""
        if type(model) is not Transformer or model.device.type != "cpu":
            return None
        layers = [_layer(block) for block in model.layers]
        found, head = [layer for layer in layers if layer is not None], _projection(model.head)
        return SingleRow(model, found, head) if head is not None and len(found) == len(layers) else None

    def __call__(self, ids_1: Tensor, positions_1: Tensor, cache: KeyValueCache) -> Output:
        c = self._config
        H, G, P, eps = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps
        x_1D = torch.embedding(self._embed_VD, ids_1)
        cos_11P, sin_11P = rotary_tables(positions_1, P, c.rope_theta, x_1D.dtype)
        routings = []
        for number, layer in enumerate(self._layers):
            normed_1D = rms_norm(x_1D, layer.attention_norm_D, eps)
            qkv = torch.mv(layer.qkv_ND, normed_1D[0]).view(1, H + 2 * G, P)
            qk, v_1GP = qkv.split_with_sizes((H + G, G), 1)
            q_1HP, k_1GP = rotate(qk, cos_11P, sin_11P).split_with_sizes((H, G), 1)
            (segment,) = cache.extend(number, k_1GP, v_1GP)
            y_11HP = attention(q_1HP.unsqueeze(0), segment.k_BCGP, segment.v_BCGP, segment.mask_BSC, segment.is_causal)
            x_1D = x_1D + torch.mv(layer.o_DN, y_11HP.view(-1))
            normed_1D = rms_norm(x_1D, layer.moe_norm_D, eps)
            routing = layer.router(normed_1D, None)
            x_1D = x_1D + layer.experts(normed_1D, routing)
            routings.append(routing)
        return Output(x_1D, routings)

    def logits(self, hidden_1D: Tensor) -> Tensor:
        """Logits [1, V] of a row of the output."""
        normed_1D = rms_norm(hidden_1D, self._norm_D, self._config.rms_norm_eps)
        return torch.mv(self._head_VD, normed_1D[0]).unsqueeze(0)


def _layer(block: nn.Module) -> _Layer | None:
    if type(block) is not Block or type(block.attention) is not Attention or type(block.feed_forward) is not MoE:
        return None
    moe, o, qkv = block.feed_forward, block.attention.o, _projection(block.attention.qkv)
    if qkv is None or type(o) is not Linear or type(moe.norm) is not RMSNorm:
        return None
    return _Layer(*qkv, o.weight, moe.norm.weight, moe.router, moe.experts)


def _projection(part: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The weights of a norm and of the linear after it."""
    if type(part) is not Projection or type(part.norm) is not RMSNorm or type(part.linear) is not Linear:
        return None
    return part.norm.weight, part.linear.weight
