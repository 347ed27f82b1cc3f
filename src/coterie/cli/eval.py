"""`coterie eval MODEL TASK...`: benchmarks from local files, with protocol, uncertainty and the seconds they took.

A run is kept in a folder as it goes; the same command with the same -o goes on where it stopped.
"""

import os
import time
from pathlib import Path

import click

__all__ = ["command"]


@click.command(name="eval", epilog="Example: coterie eval demo hellaswag --data data --limit 100")
@click.argument("model", required=False)
@click.argument("tasks", metavar="TASK...", nargs=-1)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the task files (default: $COTERIE_DATA).")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most N items of each task, of all its parts."
)
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Solved examples before each question.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Answers drawn of each generation (maj@N).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="RUN", help="Folder of the run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the figures, as .svg or .png.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Record the routing of what is read.")
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
@click.option("--paper", is_flag=True, help="The Mixtral paper's tables 2 to 5 and on bias, beside MODEL's; no TASK.")
@click.option(
    "--repeat", type=click.Path(path_type=Path), metavar="RUN", help="Run a run.json again and compare the scores."
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
    plot: Path | None,
    trace: Path | None,
    run_code: bool,
    judge: str | None,
    battles: tuple[Path, ...],
    paper: bool,
    repeat: Path | None,
    settings: tuple[str, ...],
) -> None:
    """Measure MODEL on each TASK: a benchmark, a group of them (multiple-choice, all), or a .jsonl file of your own.

    \b
      coterie eval demo arc_easy piqa --limit 200 -o runs/small
      coterie eval demo my_questions.jsonl --json
      coterie eval --repeat runs/small
      coterie eval --battles runs/judged/battles.jsonl
    """
    modes = {"--battles": bool(battles), "--paper": paper, "--repeat": repeat is not None}
    if sum(modes.values()) > 1:
        raise click.UsageError(f"{' and '.join(name for name, given in modes.items() if given)} do not go together")
    chosen = _settings(settings) | ({"judge": judge} if judge else {})
    if battles:
        from coterie.cli.eval_battles import print_battles

        if model is not None:
            raise click.UsageError(f"--battles needs neither a model nor a task, but {model!r} was given")
        unused = _given(data=data, limit=limit, shots=shots, samples=samples, out=out, trace=trace)
        unused += ["--run-code"] * run_code
        if unused:
            raise click.UsageError(f"--battles asks no model, so nothing reads {', '.join(unused)}: leave it out")
        print_battles(battles, chosen, seed=seed, as_json=as_json, plot=plot)
        return
    folder = out or Path("runs", "eval", time.strftime("%Y%m%d-%H%M%S"))
    data = data or _default_data()
    if repeat is not None:
        from coterie.cli.eval_repeat import repeat_run

        fixed = [model, *tasks, *_given(limit=limit, shots=shots, samples=samples, trace=trace, plot=plot), *chosen]
        if any(fixed) or seed or run_code:
            raise click.UsageError(
                "--repeat takes model, tasks and options from the run: leave out all but -o and --data"
            )
        repeat_run(repeat, data=data, folder=folder, as_json=as_json)
        return
    if model is None or not (tasks or paper):
        raise click.UsageError("expected a MODEL and at least one TASK, for example: coterie eval demo hellaswag")
    if paper:
        from coterie.cli.eval_paper import print_paper
        from coterie.cli.model_argument import load_with_bar

        alone = [*tasks, *_given(shots=shots, samples=samples, trace=trace, plot=plot)]
        if alone:
            raise click.UsageError(f"--paper has tasks, shots and samples of its own: leave out {' '.join(alone)}")
        print_paper(
            load_with_bar(model), data=data, folder=folder, limit=limit, seed=seed, run_code=run_code, settings=chosen,
            as_json=as_json,
        )  # fmt: skip
        return
    from coterie.cli.eval_run import Asked, measure

    asked = Asked(model, tasks, data, limit, shots, samples, seed, run_code, chosen)
    measure(asked, folder, as_json=as_json, plot=plot, trace=trace)


def _given(**options: object) -> list[str]:
    return [f"--{name}" for name, value in options.items() if value is not None]


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
