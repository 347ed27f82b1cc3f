"""`coterie train RECIPE --compare topk,switch,...`: a run for each router, then the table and the picture.

Runs that are complete are not run again, stopped ones go on, and one that fails is named while the others go on.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note, print_json

if TYPE_CHECKING:
    from coterie.train.compare import Row
    from coterie.train.recipe import Recipe

__all__ = ["compare_routers", "compare_runs"]

Run = Callable[["Recipe", Path], dict[str, Any] | None]  # trains in a folder; None where it stopped before the end


def compare_routers(
    plan: "Recipe", out: Path, kinds: list[str], *, steps: int | None, is_fresh: bool, as_json: bool
) -> None:
    """`coterie train --compare`: in `out`/compare, on the vocabulary and the tokens of `out`."""
    from coterie.cli.train_run import forget, run_recipe

    folder = out / "compare"
    if is_fresh:
        for kind in kinds:
            forget(folder / kind)
            (folder / kind / "recipe.json").unlink(missing_ok=True)
    rows = compare_runs(plan, folder, kinds, lambda its_plan, run: run_recipe(its_plan, run, steps, texts=out))
    if as_json:
        print_json(rows)
    elif rows:
        print((folder / "table.md").read_text(encoding="utf-8"), end="")


def compare_runs(plan: "Recipe", folder: Path, kinds: list[str], run: Run) -> list[dict[str, Any]]:
    """Train each kind in `folder`/KIND, write table.md, table.json and plot.svg there, and give the table's rows.

    Raises `RecipeError` at once where another recipe was trained there, and `CoterieError` at the end where a kind
    failed, with the table of the others written.
    """
    from coterie.errors import CoterieError
    from coterie.train.compare import as_json, recipe_for

    plans = {kind: recipe_for(plan, kind) for kind in kinds}
    for kind, its_plan in plans.items():
        _require_same_recipe(its_plan, folder / kind)
    rows, n_stopped = [], 0
    for number, (kind, its_plan) in enumerate(plans.items(), 1):
        note(f"router {kind} ({number} of {len(kinds)})")
        row = _row(kind, its_plan, folder / kind, run)
        rows += [row] if row else []
        n_stopped += row is None
    if n_stopped:
        note(
            f"{n_stopped} of {len(kinds)} routers are not trained to the end; without --steps, or with more, it goes on"
        )
    if rows:
        _write(rows, plan, folder)
        note(f"{folder / 'table.md'} has the table, {folder / 'plot.svg'} the curves")
    failed = [row.kind for row in rows if row.error]
    if failed:
        raise CoterieError(f"{', '.join(failed)} failed, the others did not: {folder / 'table.md'} says why")
    return as_json(rows)


def _row(kind: str, plan: "Recipe", folder: Path, run: Run) -> "Row | None":
    from coterie.train.compare import Row, row_of

    try:
        _keep_recipe(plan, folder)
        if not (folder / "scores.json").exists():
            if run(plan, folder) is None:
                return None
        else:
            note(f"{folder} is complete")
        return row_of(kind, folder)
    except Exception as error:
        note(f"router {kind} failed: {error}")
        return Row(kind=kind, error=f"{type(error).__name__}: {error}")


def _require_same_recipe(plan: "Recipe", folder: Path) -> None:
    """`RecipeError` where another recipe has been started in this folder: its figures are not to stand beside ours."""
    from coterie.errors import RecipeError

    kept = folder / "recipe.json"
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != _identity(plan):
        raise RecipeError(
            f"{folder} was trained with another recipe; choose another --out, or start again with --fresh"
        )


def _keep_recipe(plan: "Recipe", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(_identity(plan), indent=1) + "\n", encoding="utf-8")


def _identity(plan: "Recipe") -> Any:
    """All of a recipe but [run], as JSON has it."""
    return json.loads(json.dumps({k: v for k, v in asdict(plan).items() if k != "run"}))


def _write(rows: "list[Row]", plan: "Recipe", folder: Path) -> None:
    from coterie.train.compare import as_json, chart, markdown, read_log

    logs = {row.kind: read_log(folder / row.kind) for row in rows if not row.error}
    tokens = plan.train.batch * plan.sequence_plan()[0][1]
    (folder / "table.md").write_text(markdown(rows, plan.train.steps), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    (folder / "plot.svg").write_text(chart(logs, tokens), encoding="utf-8")
