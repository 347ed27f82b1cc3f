"""`coterie plan RECIPE`: what a training run will cost on this machine, before it is started."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.output import note, print_json

if TYPE_CHECKING:
    import torch

    from coterie.config import ModelConfig
    from coterie.train.plan import Plan
    from coterie.train.recipe import Recipe
    from coterie.train.sample import Sample

__all__ = ["command", "plan_recipe"]

_EXAMPLES = """\b
Examples:
  coterie plan recipes/demo.toml
  coterie plan recipes/demo.toml --no-measure --json"""


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--no-measure", is_flag=True, help="No measured steps: memory by formula alone, and no time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(recipe: Path, no_measure: bool, as_json: bool) -> None:
    """Say what training RECIPE (a TOML file) will cost on this machine.

    Parameters, operations, memory by part, time from about 5 seconds of measured steps, the loss that scaling laws
    expect, and when upcycling beats a start from scratch. Nothing is tokenised, trained or written.
    """
    from coterie.cli.plan_text import print_plan

    document = plan_recipe(recipe, is_measured=not no_measure)
    if as_json:
        print_json(document)
    else:
        print_plan(document)


def plan_recipe(path: Path, *, is_measured: bool) -> dict[str, Any]:
    """The plan as JSON values. Raises `RecipeError` and `ConfigError` as training would."""
    from coterie.device import available_memory, choose_device, choose_dtype
    from coterie.errors import RecipeError
    from coterie.train.corpus import measure_corpora
    from coterie.train.plan import make_plan
    from coterie.train.recipe import read_recipe

    recipe = read_recipe(path)
    if recipe.train.steps == 0:
        raise RecipeError(f"{path}: [train] steps is 0: nothing is trained, so there is nothing to plan")
    device = choose_device("auto")
    dtype = choose_dtype(recipe.train.dtype, "bfloat16", device)
    config = _config(path, recipe, dtype)
    run = _run_folder(recipe)
    corpora, valid = (
        measure_corpora(files, run, config.vocab_size) for files in (recipe.data.files, recipe.data.valid)
    )
    available = available_memory(device)
    samples, problem = _samples(path, recipe, config, dtype, device, available) if is_measured else ([], None)
    plan = make_plan(
        recipe, config, dtype, available=available, device=device.type, corpora=corpora,
        valid_tokens=sum(c.tokens for c in valid), samples=samples,
    )  # fmt: skip
    return _document(path, plan, recipe, config, dtype, device, samples, problem)


def _config(path: Path, recipe: "Recipe", dtype: "torch.dtype") -> "ModelConfig":
    """Of the run: [model] and [router] on top of the model it starts from, or else of the size of its vocabulary."""
    from coterie.tokenizer.load import load_tokenizer
    from coterie.tokenizer.training import require_trainable_size
    from coterie.train.origin import check_vocabulary, open_origin, run_config
    from coterie.train.recipe import expand_path, fresh_config

    wanted = recipe.data.tokenizer
    if (origin := open_origin(recipe)) is not None:
        config = run_config(origin, recipe, dtype, where=str(path))
        if isinstance(wanted, str) and wanted:
            named = expand_path(wanted)
            check_vocabulary(config, load_tokenizer(named), origin.folder, named)
        return config
    if isinstance(wanted, dict):
        require_trainable_size(pieces := wanted["vocab_size"])
    else:
        pieces = load_tokenizer(expand_path(wanted)).vocab_size
    return fresh_config(recipe, dtype, pieces, where=str(path))


def _run_folder(recipe: "Recipe") -> Path | None:
    """Where an earlier run may have left its tokens."""
    from coterie.errors import DataError
    from coterie.train.recipe import expand_path

    try:
        return expand_path(recipe.run.out)
    except DataError:
        return None


def _samples(
    path: Path, recipe: "Recipe", config: "ModelConfig", dtype: "torch.dtype", device: "torch.device", available: int
) -> "tuple[list[list[Sample]], str | None]":
    """What was measured, or why nothing was."""
    from coterie.errors import ResourceError
    from coterie.train.measure import measure_phases

    try:
        return measure_phases(path, recipe, config, dtype, device, available=available, report=note), None
    except ResourceError as e:
        return [], str(e)


def _document(
    path: Path, plan: "Plan", recipe: "Recipe", config: "ModelConfig", dtype: "torch.dtype", device: "torch.device",
    samples: "list[list[Sample]]", problem: str | None,
) -> dict[str, Any]:  # fmt: skip
    from coterie.train.peak import matrix_peak
    from coterie.train.scaling import UPCYCLING

    memory, static = plan.memory, plan.memory.parts.static
    below, above = plan.upcycling
    return {
        "recipe": str(path),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "optimizer": recipe.train.optimizer,
        "config": config.to_fields(),
        "parameters": {"total": plan.parameters, "active": plan.active},
        "tokens": {"total": plan.tokens, "steps": recipe.train.steps, "per_step": plan.tokens // recipe.train.steps},
        "operations": {"total": plan.operations, "per_token": plan.operations / plan.tokens},
        "memory": {
            "static": asdict(static) | {"held": static.held},
            "activations": asdict(memory.parts.activations) | {"total": memory.parts.activations.total},
            "framework": memory.framework,
            "rest": memory.rest,
            "peak": memory.peak,
            "available": memory.available,
            "fits": memory.fits,
            "is_measured": memory.is_measured,
        },
        "phases": [asdict(p) for p in plan.phases],
        "seconds": None if plan.timing is None else asdict(plan.timing) | {"total": plan.timing.total},
        "matrix_peak": matrix_peak(dtype, device) if samples else None,
        "samples": [[asdict(s) for s in phase] for phase in samples],
        "not_measured": problem,
        "text": [asdict(c) | {"epochs": n} for c, n in zip(plan.corpora, plan.epochs, strict=True)],
        "losses": [asdict(p) for p in plan.predictions],
        "optimum": {"parameters": plan.optimum[0], "tokens": plan.optimum[1]},
        "upcycling": {
            "loses_below": below,
            "wins_above": above,
            "reports": [asdict(report) for report in UPCYCLING],
        },
        "warnings": plan.warnings,
    }
