"""The processes that train one model together: which one this is, how they are laid out, what they tell each other.

`data` x `expert` ranks. Every rank takes its own rows of each batch. Experts are divided among the `expert` ranks of a
row of the mesh, everything else among all of them. Ranks are consecutive along `expert`, so that the ranks that
exchange tokens are neighbours: with data 2 and expert 2 the mesh is [[0, 1], [2, 3]].
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from coterie.errors import RecipeError, ResourceError

__all__ = ["RANK", "RANKS", "STORE", "Mesh", "loopback", "mesh_shape", "n_ranks_of"]

RANK, RANKS, STORE = "COTERIE_RANK", "COTERIE_RANKS", "COTERIE_STORE"  # what `train/launch.py` tells each rank
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE
_PATIENCE = timedelta(days=7)  # the others wait while rank 0 tokenises or hashes; torch gives up after 30 minutes


@dataclass(frozen=True)
class Mesh:
    """This process's place among those that train together."""

    rank: int
    n_ranks: int
    data: int
    expert: int
    device: torch.device
    grid: DeviceMesh | None = field(default=None, repr=False)  # [data, expert]
    line: DeviceMesh | None = field(default=None, repr=False)  # the same ranks, one after the other

    @staticmethod
    def single(device: torch.device | str = "cpu") -> "Mesh":
        """One process, no communication."""
        return Mesh(0, 1, 1, 1, torch.device(device))

    @staticmethod
    def connect(
        data: int, expert: int, device: torch.device | str = "cpu", env: Mapping[str, str] = os.environ
    ) -> "Mesh":
        """Meet the other ranks that `torchrun` or `coterie train --ranks` started; alone where neither did.

        `data` 0 means as many as there are ranks for. `RecipeError` where data x expert is not the number of ranks,
        `ResourceError` where there are more ranks than GPUs, or torch cannot bring those together.
        """
        n_ranks = n_ranks_of(env)
        data, expert = mesh_shape(data, expert, n_ranks)
        kind = torch.device(device).type
        if n_ranks == 1:
            return Mesh.single(device)
        if RANK not in env:
            _require_torchrun(n_ranks, env)
        device = torch.device(kind)
        if kind == "cuda":
            device = _own_gpu(env)
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if RANK in env:
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback()
            store = dist.FileStore(env[STORE], n_ranks)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=int(env[RANK]), world_size=n_ranks, timeout=_PATIENCE)
        else:
            dist.init_process_group(backend, timeout=_PATIENCE)
        grid = init_device_mesh(kind, (data, expert), mesh_dim_names=("data", "expert"))
        line = init_device_mesh(kind, (n_ranks,), mesh_dim_names=("all",))
        return Mesh(dist.get_rank(), n_ranks, data, expert, device, grid, line)

    @property
    def is_first(self) -> bool:
        """The rank that speaks, logs and writes what is written once."""
        return self.rank == 0

    def rows(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch [B, ...] that every rank has; B is a multiple of the number of ranks."""
        return batch.chunk(self.n_ranks)[self.rank]

    def require_rows(self, rows: Iterable[int]) -> None:
        """`RecipeError` unless each of these numbers of sequences can be divided evenly among the ranks."""
        for n in rows:
            if n % self.n_ranks:
                raise RecipeError(
                    f"[train] batch: a micro-batch has {n} sequence{'s'[: n > 1]}, which {self.n_ranks} ranks cannot "
                    f"share evenly; make it a multiple of {self.n_ranks}, or take fewer ranks"
                )

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, on each of them; a new tensor."""
        if self.n_ranks == 1:
            return x
        total = x.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(x.device)

    def sum_numbers(self, *numbers: float) -> list[float]:
        """The sum of each number over all ranks, in float64."""
        total: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return total

    def first_says(self, text: str) -> str:
        """What rank 0 calls this with, on every rank."""
        said = text.encode() if self.is_first else b""
        n_bytes = int(self.sum_numbers(len(said))[0])
        heard = torch.zeros(n_bytes, dtype=torch.int32)
        if self.is_first:
            heard += torch.tensor(list(said), dtype=torch.int32)
        return bytes(self.sum(heard).tolist()).decode()

    def any(self, is_true: bool) -> bool:
        """Whether it is true on any rank."""
        return self.sum_numbers(float(is_true))[0] > 0

    def wait(self) -> None:
        """Until every rank is here."""
        self.sum_numbers(0.0)

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """The block runs on rank 0, and then on the others: what rank 0 wrote, they find."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def leave(self) -> None:
        """The end of all communication."""
        if self.n_ranks > 1:
            dist.destroy_process_group()


def n_ranks_of(env: Mapping[str, str] = os.environ) -> int:
    """How many ranks this process was started as one of; 1 without `torchrun` and `--ranks`."""
    found = env.get(RANKS) or env.get("WORLD_SIZE") or "1"
    if not (found.isascii() and found.isdigit() and int(found)):
        raise RecipeError(f"the environment says WORLD_SIZE = {found}, expected a number of ranks; unset it")
    return int(found)


def mesh_shape(data: int, expert: int, n_ranks: int) -> tuple[int, int]:
    """`data` (0: what is left) and `expert`, whose product is the number of ranks; else `RecipeError`."""
    whole = data or max(1, n_ranks // expert)
    if whole * expert != n_ranks:
        asked = f"data = {data}, expert = {expert}" if data else f"expert = {expert}"
        raise RecipeError(
            f"[parallel] {asked} does not fit {n_ranks} rank{'s'[: n_ranks > 1]}; data x expert must be the number of "
            f"ranks: start with --ranks {whole * expert}, or change [parallel]"
        )
    return whole, expert


def _require_torchrun(n_ranks: int, env: Mapping[str, str]) -> None:
    """`RecipeError` where somebody set WORLD_SIZE and not what a rank needs to find the others."""
    if missing := [name for name in _OF_TORCHRUN if name not in env]:
        raise RecipeError(
            f"the environment says WORLD_SIZE = {n_ranks} and not {', '.join(missing)}; start with torchrun, which "
            "sets them all, or unset WORLD_SIZE"
        )


def _own_gpu(env: Mapping[str, str]) -> torch.device:
    """One GPU for each rank of this machine."""
    rank, n_gpus = int(env.get(RANK) or env["LOCAL_RANK"]), torch.cuda.device_count()
    n_ranks = int(env.get(RANKS) or env.get("LOCAL_WORLD_SIZE") or rank + 1)
    if n_ranks > n_gpus:
        raise ResourceError(
            f"{n_ranks} ranks on one machine need as many GPUs, and here are {n_gpus}; take fewer ranks, or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if not dist.is_nccl_available():
        raise ResourceError(
            "this torch was built without NCCL, through which GPUs talk to each other; take one rank, or hide the GPUs "
            "with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return torch.device("cuda", rank)


def loopback() -> str:
    """The name of the network interface that reaches this machine only; `RecipeError` if it has none."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if not names:
        raise RecipeError("this machine has no loopback interface lo or lo0; --ranks needs one, torchrun does not")
    return names[0]
