"""`coterie eval MODEL TASK...`: benchmarks from local files, with protocol, uncertainty and the seconds they took.

A run is kept in a folder as it goes; the same command with the same -o goes on where it stopped.
"""

import os
import time
from pathlib import Path
from typing import Any

import click

from coterie.cli.output import print_json, progress

__all__ = ["command"]


@click.command(name="eval", epilog="Example: coterie eval demo hellaswag --data data --limit 100")
@click.argument("model", required=False)
@click.argument("tasks", metavar="TASK...", nargs=-1)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the task files (default: $COTERIE_DATA).")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N items of each task.")
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Solved examples before each question.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Answers drawn of each generation (maj@N).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="RUN", help="Folder of the run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--run-code", is_flag=True, help="Allow tasks that run code the model writes, in a sandboxed process.")
@click.option(
    "--judge", metavar="URL", help="An OpenAI-compatible endpoint that rates answers (key: COTERIE_JUDGE_KEY)."
)
@click.option(
    "--battles",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Rate models by who beat whom, a .jsonl in the arena's form; no MODEL.",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of a task; may be repeated.")
def command(
    model: str | None,
    tasks: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    shots: int | None,
    samples: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    run_code: bool,
    judge: str | None,
    battles: tuple[Path, ...],
    settings: tuple[str, ...],
) -> None:
    """Measure MODEL on each TASK: a name of a benchmark, multiple-choice, all, or a .jsonl file of your own.

    \b
      coterie eval demo arc_easy piqa --limit 200 -o runs/small
      coterie eval demo my_questions.jsonl --json
      coterie eval --battles runs/judged/battles.jsonl
    """
    if battles:
        from coterie.cli.eval_battles import print_battles

        if model is not None:
            raise click.UsageError(f"--battles needs neither a model nor a task, but {model!r} was given")
        print_battles(battles, _settings(settings), seed=seed, as_json=as_json, plot=None)
        return
    if model is None or not tasks:
        raise click.UsageError("expected a MODEL and at least one TASK, for example: coterie eval demo hellaswag")
    folder = out or Path("runs", "eval", time.strftime("%Y%m%d-%H%M%S"))
    asked = {"limit": limit, "shots": shots, "samples": samples, "seed": seed, "run_code": run_code}
    chosen = _settings(settings) | ({"judge": judge} if judge else {})
    _evaluate(model, tasks, data or _default_data(), folder, asked, chosen, as_json)


def _evaluate(
    model: str, tasks: tuple[str, ...], data: Path | None, folder: Path, asked: dict[str, Any],
    settings: dict[str, str], as_json: bool,
) -> None:  # fmt: skip
    from coterie.cli.eval_text import print_report
    from coterie.cli.model_argument import load_with_bar
    from coterie.eval.run import evaluate

    lm = load_with_bar(model)
    options = {"data": data, "run_dir": folder, "settings": settings, **asked}
    with progress("evaluating", unit="items") as bar:
        report = evaluate(lm, tasks, progress=lambda name, done, total: bar(done, total), **options)
    if as_json:
        print_json(report.document)
    else:
        print_report(report)


def _default_data() -> Path | None:
    folder = os.environ.get("COTERIE_DATA")
    return Path(folder) if folder else None


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise click.UsageError(f"--set {pair!r}: expected NAME=VALUE")
        settings[name] = value
    return settings
