"""A sparse decoder's layers as one call of the native kernels, for passes over the slots of a cache.

Decoding a small model is hundreds of small calls a token, and walking through modules takes longer than computing. What
runs is what the modules would run, kernel by kernel, so the bits are the same. `NativePass.of` finds the weights in a
model whose parts are the ones it knows, plain or packed; for any other model it is None and the modules run themselves.
It holds addresses: make a new one when weights may have moved. Shapes: T tokens, D model width, L layers, K slots.
"""

from typing import Any

import torch
from torch import Tensor, nn

from coterie.engine.plan import Plan
from coterie.kernels import cpu, is_native, rotary_tables
from coterie.model import Output, Transformer
from coterie.model.attention import Attention
from coterie.model.experts import Experts
from coterie.model.moe import MoE
from coterie.model.norm import Linear, Projection, RMSNorm
from coterie.model.transformer import Block
from coterie.quant.layers import PackedExperts, PackedLinear, PackedProjection
from coterie.routing import Assignment, Rows, TopKRouter

__all__ = ["NativePass"]


class NativePass:
    """`of(model)`, then call it as the model is called, with the plan of a pass."""

    def __init__(self, model: Transformer, layers: list[tuple[Any, ...]]):
        self._model = model
        self._decoder = cpu.decoder_handle(layers)
        self._sizes = model.config.num_attention_heads, len(layers), *_router_sizes(layers)

    @staticmethod
    def of(model: nn.Module) -> "NativePass | None":
        """None where a part is not plain or packed, the model is dense, or there are no native kernels."""
        if type(model) is not Transformer or not model.layers or not _is_here(model):
            return None
        layers = [_layer(block) for block in model.layers]
        found = [layer for layer in layers if layer is not None]
        return NativePass(model, found) if len(found) == len(layers) else None

    def __call__(self, ids_T: Tensor, plan: Plan, rows: Rows | None = None) -> Output:
        model, c = self._model, self._model.config
        x_TD = model.embed(ids_T).contiguous()
        if not is_native(x_TD):  # the kernels were changed, or a gradient is asked for
            output: Output = model(ids_T, plan.positions_T, plan, rows)
            return output
        rotary = rotary_tables(plan.positions_T, c.head_dim, c.rope_theta, torch.float32)
        ids_LTK, weights_LTK, logits_LTE = cpu.decode(
            self._decoder, x_TD, rotary, plan.store, plan.tables, plan.sequences_B3, plan.window, self._sizes,
            rows.edits.of_all_layers() if rows is not None and rows.edits is not None else None,
        )  # fmt: skip
        routings = zip(ids_LTK.unbind(), weights_LTK.unbind(), logits_LTE.unbind(), strict=True)
        return Output(x_TD, [Assignment(ids, weights, logits, {}) for ids, weights, logits in routings])


def _router_sizes(layers: list[tuple[Any, ...]]) -> tuple[int, int]:
    router = layers[0][5]
    return router.top_k, len(router.weight)


def _is_here(model: Transformer) -> bool:
    with torch.inference_mode():
        return is_native(model.head.get_submodule("norm").get_parameter("weight"))


def _layer(block: nn.Module) -> tuple[Any, ...] | None:
    """The arguments of `cpu.decoder_handle` for one block."""
    if type(block) is not Block or type(block.attention) is not Attention or type(block.feed_forward) is not MoE:
        return None
    attention, moe = block.attention, block.feed_forward
    qkv, o, experts = _matrices(attention.qkv), _matrices(attention.o), _experts(moe.experts)
    if qkv is None or o is None or experts is None:
        return None
    if type(moe.norm) is not RMSNorm or type(moe.router) is not TopKRouter:
        return None
    attention_norm_D = attention.qkv.get_submodule("norm").get_parameter("weight")
    return qkv, o, attention_norm_D, moe.norm.weight, moe.norm.eps, moe.router, experts


def _matrices(part: nn.Module) -> Any | None:
    """The matrices of a Linear or of a Projection."""
    if type(part) in (Projection, PackedProjection) and type(part.norm) is RMSNorm:
        part = part.get_submodule("linear")
    if type(part) is Linear:
        return cpu.matrix_handle([part.weight])
    return part.handle if type(part) is PackedLinear else None


def _experts(part: nn.Module) -> tuple[Any, int] | None:
    if type(part) is Experts:
        return cpu.stacked_handle(part.gate_up, part.down), part.down.shape[2]
    if type(part) is PackedExperts and part.handle is not None:
        return part.handle, part.width
    return None
