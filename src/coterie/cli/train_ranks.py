"""`coterie train` on several ranks: started here by `--ranks N`, or by torchrun on many machines."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from coterie.train.mesh import Mesh
    from coterie.train.recipe import Recipe

__all__ = ["hold_run_on_first", "meet_ranks", "start_ranks"]


def start_ranks(context: click.Context, plan: "Recipe", n_ranks: int, is_debug: bool) -> None:
    """Run this very command on `n_ranks` ranks to its end, and leave with their exit code."""
    from coterie.errors import RecipeError
    from coterie.train.launch import launch
    from coterie.train.mesh import mesh_shape, n_ranks_of

    if n_ranks_of() > 1:
        raise RecipeError(
            "--ranks starts the ranks itself, and torchrun has started some already; leave one of them out"
        )
    mesh_shape(plan.parallel.data, plan.parallel.expert, n_ranks)  # a mistake is told before anything is started
    command = [sys.executable, "-m", "coterie", *_again(context), *["--debug"] * is_debug]
    raise click.exceptions.Exit(launch(n_ranks, command))


def _again(context: click.Context) -> list[str]:
    """The words of the command line, but for --ranks: a rank knows how many there are."""
    words = [context.info_name or "train"]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name == "ranks" or value is None or value is False:
            continue
        if isinstance(parameter, click.Option):
            words.append(parameter.opts[0])
        words += [] if value is True else [str(value)]
    return words


@contextmanager
def meet_ranks(plan: "Recipe", *, alone: str | None) -> Iterator["Mesh"]:
    """The ranks of this run, laid out as [parallel] says; only rank 0 speaks. `alone` is an option that takes one rank.

    `RecipeError` where the recipe and the number of ranks do not fit.
    """
    from coterie.device import choose_device
    from coterie.errors import RecipeError
    from coterie.train.launch import as_rank
    from coterie.train.mesh import Mesh, n_ranks_of

    if alone and n_ranks_of() > 1:
        raise RecipeError(f"{alone} takes one rank; leave --ranks (or torchrun) out")
    with as_rank(), ExitStack() as silent:
        mesh = Mesh.connect(plan.parallel.data, plan.parallel.expert, choose_device("auto"))
        mesh.require_rows(plan.rows_of_micro_batches())  # before hours of tokenising
        if not mesh.is_first:
            nowhere = silent.enter_context(open(os.devnull, "w"))
            silent.enter_context(contextlib.redirect_stderr(nowhere))
        yield mesh
        mesh.leave()


@contextmanager
def hold_run_on_first(folder: Path, mesh: "Mesh") -> Iterator[None]:
    """`hold_run` for all ranks: the lock is rank 0's."""
    from coterie.train.lock import hold_run

    with hold_run(folder) if mesh.is_first else contextlib.nullcontext():
        yield
