"""From a plain model to one whose weights are divided among ranks: `parallelise(model, mesh)`, in place.

FSDP2 (`fully_shard`, arXiv 2304.11277 for the idea): each rank keeps a part of every weight, a block's weights are
gathered when it runs and its gradients are summed over ranks into the part that each keeps. Routers are a group of
their own, so that they stay float32 whatever type the rest computes in. Gradients are sums, not means: the losses are
already shares of the whole batch.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from coterie.errors import RecipeError
from coterie.model import Transformer
from coterie.model.moe import MoE
from coterie.train.expert_parallel import ExpertParallel
from coterie.train.mesh import Mesh

__all__ = ["gather", "let_go", "masters_dtype", "parallelise"]


def masters_dtype(compute: torch.dtype, mesh: Mesh) -> torch.dtype:
    """In which a model has to be made that computes in `compute`: divided, its parameters are float32 at least."""
    return compute if mesh.n_ranks == 1 else torch.promote_types(compute, torch.float32)


def parallelise(model: Transformer, mesh: Mesh, compute: torch.dtype) -> Transformer:
    """The same model, its parameters (the masters) divided among the ranks of `mesh`; products run in `compute`."""
    if mesh.grid is None or mesh.line is None:
        return model
    if mesh.expert > 1 and model.config.is_sparse and model.config.router.kind == "soft":
        raise RecipeError(
            "[parallel] expert: the router 'soft' mixes tokens and sends none to experts elsewhere; leave expert out, "
            "and its experts are divided as all else is"
        )
    for block in model.layers:
        moe = block.feed_forward
        if isinstance(moe, MoE):
            if mesh.expert > 1:
                moe.experts = ExpertParallel(moe.experts, mesh.grid["expert"])
                _shard_experts(moe.experts, mesh.grid["data"], compute)
            if any(True for _ in moe.router.parameters()):
                _shard(moe.router, mesh.line, None)
        _shard(block, mesh.line, compute)
    _shard(model, mesh.line, compute, reshard_after_forward=False)  # the head is used after `forward`
    return model


def let_go(model: Transformer) -> None:
    """After a pass without a backward: the gathered weights of embedding and head go, each rank keeps its part."""
    if isinstance(model, FSDPModule):
        model.reshard()


def gather(model: Transformer, mesh: Mesh, dtype: torch.dtype) -> Transformer:
    """On rank 0 the whole model in main memory; the others help, and get one without memory for its weights."""
    if mesh.n_ranks == 1:
        return model
    let_go(model)
    whole = Transformer(model.config, dtype, "cpu" if mesh.is_first else "meta")
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, p in model.named_parameters():
            tensor = p.full_tensor() if isinstance(p, DTensor) else p
            if mesh.is_first:
                whole.get_parameter(name).copy_(tensor)
        for name, buffer in whole.named_buffers():
            buffer.copy_(buffers[name])
    return whole.eval()


def _shard(module: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None, **options: Any) -> None:
    """`compute` None: in the parameters' own type."""
    precision = MixedPrecisionPolicy(
        compute,
        reduce_dtype=None if compute is None else torch.promote_types(compute, torch.float32),
        cast_forward_inputs=False,
    )
    fully_shard(module, mesh=mesh, mp_policy=precision, **options)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo knows sums only


def _shard_experts(experts: ExpertParallel, mesh: DeviceMesh, compute: torch.dtype) -> None:
    """A rank's experts are cut along their second axis, rows: their first is divided already."""
    for name, p in experts.named_parameters():
        if p.shape[1] % mesh.size():
            raise RecipeError(
                f"[parallel] data = {mesh.size()} does not divide the {p.shape[1]} rows of an expert's {name}"
            )
    _shard(experts, mesh, compute, shard_placement_fn=lambda p: Shard(1))
