"""Starting a function on several ranks, as processes that meet in a file; they import torch once, all together."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["on_ranks"]


def on_ranks(n: int, function: Callable[..., None], *args: Any, timeout: float = 120) -> None:
    """Run `function(*args)` of a test module in `n` processes; `Mesh.connect` there finds the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["coterie.train.loop", "coterie.train.parallelise", "torch.distributed.checkpoint"])
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        processes = [context.Process(target=_run, args=(rank, n, store, function, args)) for rank in range(n)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(timeout)
            assert [p.exitcode for p in processes] == [0] * n
        finally:
            for process in processes:
                process.kill()


def _run(rank: int, n: int, store: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(COTERIE_RANK=str(rank), COTERIE_RANKS=str(n), COTERIE_STORE=store)
    import torch

    torch.set_num_threads(1)
    function(*args)
