"""Experts divided among ranks: tokens travel to the rank that holds their expert, and the results back.

`ExpertParallel` stands where `Experts` stood and is called alike. Each rank sends every (token, slot) pair to the rank
of its expert, computes for what it received, and sends the outputs back, where the sum over slots is as ever. Both
journeys are one all-to-all of rows; in backward the gradients go the same ways in reverse. A rank that received nothing
still computes (on no rows) and takes part in every exchange: nobody waits for it in vain, and its gradients are 0.

Shapes: T tokens, K slots a token, E experts of all ranks, e experts of this one, D model width, F expert width,
N = T·K pairs, M pairs received.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from coterie.errors import RecipeError
from coterie.kernels import combine
from coterie.model.experts import Experts
from coterie.routing import Assignment

__all__ = ["ExpertParallel"]


class ExpertParallel(nn.Module):
    """`gate_up` [E, 2F, D] and `down` [E, D, F] are DTensors; each of the n ranks of the line `mesh` has E/n."""

    def __init__(self, experts: nn.Module, mesh: DeviceMesh):
        super().__init__()
        assert isinstance(experts, Experts)
        n, n_experts = mesh.size(), len(experts.gate_up)
        if n_experts % n:
            raise RecipeError(f"[parallel] expert = {n} does not divide the {n_experts} experts of a layer evenly")
        self.n_local = n_experts // n
        self.group, self.n_ranks = mesh.get_group(), n
        self.gate_up = nn.Parameter(_own(experts.gate_up, mesh))
        self.down = nn.Parameter(_own(experts.down, mesh))
        # A module without weights of its own, lent those of this rank at each call; in a tuple it is no child.
        self._plain = (Experts(*(torch.empty(0, device="meta") for _ in range(2))),)

    def forward(self, x_TD: Tensor, routing: Assignment) -> Tensor:
        """As `Experts.forward`."""
        (T, K), D = routing.ids_TK.shape, x_TD.shape[1]
        pair_N, send, ids_N = self._plan(routing.ids_TK)
        receive = _exchange_counts(send, self.group)
        ids_M = _exchange(ids_N, send, receive, self.group)
        x_MD = _exchange(x_TD.index_select(0, pair_N // K), send, receive, self.group)
        out_ND = _exchange(self._local(x_MD, ids_M), receive, send, self.group)
        out_TKD = out_ND.new_zeros(T * K, D).index_copy(0, pair_N, out_ND).view(T, K, D)
        return combine(out_TKD, routing.weights_TK)

    def _plan(self, ids_TK: Tensor) -> tuple[Tensor, list[int], Tensor]:
        """The pairs in use in the order of their experts, how many go to each rank, and each one's expert there.

        Example, 2 ranks of 2 experts, ids [[3, 0], [1, -1]]: pairs [1, 2, 0] have experts 0, 1, 3; 2 of them go to
        rank 0 and 1 to rank 1, where it is expert 1.
        """
        ids_N = ids_TK.reshape(-1).long()
        counts = torch.bincount(ids_N // self.n_local + 1, minlength=self.n_ranks + 1).tolist()
        pair_N = ids_N.argsort(stable=True)[counts[0] :]
        return pair_N, counts[1:], ids_N[pair_N] % self.n_local

    def _local(self, x_MD: Tensor, ids_M: Tensor) -> Tensor:
        """The outputs, not weighted, of this rank's experts."""
        ids_M1 = ids_M.int()[:, None]
        ones_M1 = torch.ones(ids_M1.shape, dtype=torch.promote_types(x_MD.dtype, torch.float32), device=x_MD.device)
        weights = {"gate_up": _local_part(self.gate_up), "down": _local_part(self.down)}
        routing = Assignment(ids_M1, ones_M1, ones_M1, {})
        y_MD: Tensor = functional_call(self._plain[0], weights, (x_MD, routing))
        return y_MD


def _own(whole: Tensor, mesh: DeviceMesh) -> DTensor:
    """This rank's slice of a tensor that every rank has, as part of the whole."""
    local = whole.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False)


def _local_part(weight: Tensor) -> Tensor:
    local: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
    return local


def _exchange_counts(send: list[int], group: dist.ProcessGroup) -> list[int]:
    """How many rows each rank will send here."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    counts = torch.tensor(send, device=device)
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts, group=group)
    counts_here: list[int] = received.tolist()
    return counts_here


class _Exchange(torch.autograd.Function):
    """Rows to the ranks of a group: the first `send[0]` to its first rank, and so on. Gradients go back alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


def _exchange(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    y: Tensor = _Exchange.apply(x, send, receive, group)  # type: ignore[no-untyped-call]
    return y


def _all_to_all(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=group)
    return out
