"""Starting a function on several ranks, as processes that meet in a file; they import torch once, all together."""

import inspect
import multiprocessing
import os
import runpy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coterie.config import ModelConfig
from coterie.train.batches import Batches
from coterie.train.loop import Trainer
from coterie.train.mesh import Mesh
from coterie.train.recipe import Balance, Data, Recipe, Run, Train
from coterie.train.tokens import TokenFile

__all__ = ["TINY", "meeting", "on_ranks", "tiny_trainer"]

TINY = ModelConfig(
    vocab_size=61, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def on_ranks(n: int, function: Callable[..., None], *args: Any, timeout: float = 120) -> None:
    """Run `function(*args)` of a test module in `n` processes; `meeting` there brings them together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["coterie.train.loop", "torch.distributed.checkpoint.state_dict_saver"])
    with tempfile.TemporaryDirectory() as folder:
        where = (inspect.getfile(function), function.__name__)
        processes = [context.Process(target=_run, args=(rank, n, folder, where, args)) for rank in range(n)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(timeout)
            assert [p.exitcode for p in processes] == [0] * n
        finally:
            for process in processes:
                process.kill()


def _run(rank: int, n: int, folder: str, where: tuple[str, str], args: tuple[Any, ...]) -> None:
    os.environ.update(COTERIE_RANK=str(rank), COTERIE_RANKS=str(n), COTERIE_STORE=str(Path(folder, "store")))
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    runpy.run_path(where[0])[where[1]](*args)


@contextmanager
def meeting(data: int, expert: int) -> Iterator[Mesh]:
    """The mesh of these ranks; one after the other there may be several, each meets in a file of its own."""
    store = f"{os.environ['COTERIE_STORE']}-{data}-{expert}-{len(_meetings)}"
    _meetings.append(store)
    mesh = Mesh.connect(data, expert, env=os.environ | {"COTERIE_STORE": store})
    try:
        yield mesh
    finally:
        mesh.leave()


_meetings: list[str] = []


def tiny_trainer(
    out: Path, mesh: Mesh | None = None, dtype: torch.dtype = torch.float64, config: ModelConfig = TINY,
    balance: Balance | None = None, **train: Any,
) -> Trainer:  # fmt: skip
    """A run of 30 steps of 4 sequences on text in which half the tokens can be foretold."""
    train = {"steps": 30, "batch": 4, "sequence": 16, "lr": 1e-2, "warmup": 2} | train
    recipe = Recipe(
        model={}, data=Data(files=("x",)), train=Train(**train), balance=balance or Balance(load=0.1, z=0.01),
        run=Run(save_every=1000, eval_every=10),
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(3, 61, 4096).astype(np.uint32)
    ids[1::2] = (ids[::2] + 1) % 61
    plan = recipe.sequence_plan()
    batches = Batches([TokenFile("x", ids, 4096)], [], plan, recipe.train.steps, recipe.train.batch * plan[0][1], 1, 0)
    out.mkdir(exist_ok=True, parents=True)
    device = mesh.device if mesh else torch.device("cpu")
    return Trainer(recipe, config, batches, dtype, device, out, _evaluate, lambda record: None, mesh=mesh)


def _evaluate(model: torch.nn.Module) -> dict[str, float]:
    from coterie.eval.perplexity import score_tokens

    with torch.no_grad():
        return {"x": score_tokens(model, list(range(3, 40)), window=16).bits_per_byte(1.0)}
