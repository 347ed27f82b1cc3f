"""The checkpoints of a run on any number of ranks: one rank writes whole tensors, several write their parts.

Whoever wrote them, any number of ranks goes on from them. Rank 0 makes the folder, seals it when all parts are there,
and drops the older ones; a rank that fails on the way ends the run, and the last good checkpoint stands.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.train.mesh import Mesh
from coterie.train.shards import describe, read_shards, write_shards
from coterie.train.state import Checkpoints, State, read_meta, write_meta

__all__ = ["ShardedCheckpoints"]

Empty = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


class ShardedCheckpoints(Checkpoints):
    """`Checkpoints` whose methods all ranks call together; `empty` makes what a tensor is read into on this rank."""

    def __init__(self, run: Path, mesh: Mesh, empty: Empty | None = None):
        super().__init__(run)
        self._mesh, self._empty = mesh, empty

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """As `Checkpoints.save`; `CheckpointError` where the parts of the other ranks do not arrive in the folder."""
        if self._mesh.n_ranks == 1:
            super().save(step, tensors, meta)
            return
        with ExitStack() as sealed:
            partial = ""
            if self._mesh.is_first:
                folder = sealed.enter_context(self.new(step))
                write_meta(folder, meta)
                partial = str(folder)
            folder = Path(self._mesh.first_says(partial))
            write_shards(folder, tensors, self._mesh.n_ranks, self._mesh.is_first)
            if self._mesh.is_first:
                _require_parts(folder, tensors)
        self._mesh.wait()

    def latest(self, read: Callable[[Path], State] | None = None) -> State | None:
        """As `Checkpoints.latest`: rank 0 verifies them, and each rank reads what it holds."""
        read = read or self.read
        if self._mesh.n_ranks == 1:
            return super().latest(read)
        newest = self._mesh.first_says(str(self._newest() or "") if self._mesh.is_first else "")
        return read(Path(newest)) if newest else None

    def tidy(self) -> None:
        if self._mesh.is_first:
            super().tidy()

    def read(self, folder: Path) -> State:
        """What this rank holds of a checkpoint; one rank alone holds all of it."""
        return read_shards(folder, self._empty if self._mesh.n_ranks > 1 else None), read_meta(folder)

    def _newest(self) -> Path | None:
        found: list[Path] = []

        def look(folder: Path) -> State:
            describe(folder)
            found.append(folder)
            return {}, read_meta(folder)

        if super().latest(look) and not found:
            raise CheckpointError(
                f"{self.run} holds a state of an earlier version; go on with one rank, then with more"
            )
        return found[-1] if found else None


def _require_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    there = describe(folder)
    for name, tensor in tensors.items():
        if tensor.ndim and (name not in there or there[name].shape != tuple(tensor.shape)):
            raise CheckpointError(
                f"{folder}: the parts of {name!r} that other ranks hold did not arrive; [run] out must be a folder "
                "that all machines share"
            )
