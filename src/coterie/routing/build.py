"""The one place that knows every router: a `RouterConfig` becomes a module. Shapes: D model width, E experts."""

from collections.abc import Callable

from torch import Tensor, nn

from coterie.router_config import RouterConfig
from coterie.routing.base_layers import BaseRouter
from coterie.routing.dense import DenseRouter
from coterie.routing.expert_choice import ExpertChoiceRouter
from coterie.routing.gshard import GShardRouter
from coterie.routing.hash import HashRouter, RandomRouter
from coterie.routing.noisy_topk import NoisyTopKRouter
from coterie.routing.router import Router
from coterie.routing.sigmoid_bias import SigmoidBiasRouter
from coterie.routing.sinkhorn import SinkhornRouter
from coterie.routing.soft import SoftRouter
from coterie.routing.sparsemixer import SparseMixerRouter
from coterie.routing.sparsemixer_v2 import SparseMixerV2Router
from coterie.routing.switch import SwitchRouter
from coterie.routing.topk import LimitedTopKRouter, TopKRouter

__all__ = ["build_router"]

_SIMPLE: dict[str, type[Router]] = {  # those with a weight alone
    router.kind: router
    for router in (BaseRouter, DenseRouter, ExpertChoiceRouter, GShardRouter, SinkhornRouter, SparseMixerV2Router,
                   SwitchRouter)
}  # fmt: skip


def build_router(
    config: RouterConfig,
    *,
    n_experts: int,
    width: int,
    top_k: int,
    renormalise: bool,
    new_tensor: Callable[..., Tensor],
    layer: int = 0,
) -> nn.Module:
    """The router of one layer. `new_tensor(*shape)` makes its parameters, unfilled: float32, or float64 to be exact.

    Raises `ConfigError` where the kind cannot route to `top_k` of `n_experts`.
    """
    config.check_sizes(n_experts, top_k, renormalise)
    kind = config.kind
    if kind in ("hash", "random"):
        make = HashRouter if kind == "hash" else RandomRouter
        return make(n_experts, top_k, layer, new_tensor(0).dtype)
    weight_ED = new_tensor(n_experts * config.slots, width)
    if config.is_plain:
        renormalise = renormalise and kind == "topk"
        if config.capacity == 0 and config.jitter == 0:
            return TopKRouter(weight_ED, top_k, renormalise, layer)
        return LimitedTopKRouter(weight_ED, top_k, config, renormalise)
    if kind == "noisy_topk":
        return NoisyTopKRouter(weight_ED, new_tensor(n_experts, width), top_k, config, renormalise)
    if kind == "sigmoid_bias":
        return SigmoidBiasRouter(weight_ED, top_k, config, renormalise)
    if kind == "soft":
        return SoftRouter(weight_ED, new_tensor(1), top_k, config)
    if kind == "sparsemixer":
        return SparseMixerRouter(weight_ED, new_tensor(1), top_k, config)
    return _SIMPLE[kind](weight_ED, top_k, config)
