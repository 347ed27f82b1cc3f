"""What a rank holds of a tensor that is divided among ranks (a DTensor); a plain tensor is held whole.

The optimizer works on these parts: an update of AdamW is the same for a part as for the whole, and needs nobody else.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

__all__ = ["as_part_of", "laid_out_as", "part_of", "whole_matrices"]


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part, in the memory of the tensor itself."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def as_part_of(like: Tensor, part: Tensor) -> Tensor:
    """A part as the whole it belongs to, laid out as `like`; no copy."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=_strides(like.shape)
    )


def whole_matrices(like: Tensor, part: Tensor) -> Tensor:
    """The same with every matrix in one place: of a stack [E, N, D] some of its matrices, else the whole."""
    whole = as_part_of(like, part)
    if not isinstance(whole, DTensor):
        return whole

    def keeps_matrices(placement: Placement) -> bool:
        return isinstance(placement, Shard) and placement.dim < whole.ndim - 2

    return whole.redistribute(placements=[p if keeps_matrices(p) else Replicate() for p in whole.placements])


def laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """The same tensor divided as `like` is."""
    if not isinstance(like, DTensor) or not isinstance(tensor, DTensor):
        return tensor
    return tensor.redistribute(placements=like.placements)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
