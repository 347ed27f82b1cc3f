"""One evaluation for `coterie eval`: the model, a bar for each task, a trace if asked for, then the table."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note, print_json, progress
from coterie.cli.plot_output import check_plot, write_plot
from coterie.cli.trace_output import check_trace_output
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.analysis.section import Plot
    from coterie.api import LanguageModel
    from coterie.eval.run import Report

__all__ = ["Asked", "bars", "measure", "run"]


@dataclass(frozen=True)
class Asked:
    """What the command line says, and what a run.json keeps of it."""

    model: str
    tasks: tuple[str, ...]
    data: Path | None = None
    limit: int | None = None
    shots: int | None = None
    samples: int | None = None
    seed: int = 0
    run_code: bool = False
    settings: dict[str, str] | None = None


def measure(asked: Asked, folder: Path, *, as_json: bool, plot: Path | None, trace: Path | None) -> None:
    """Run it, print the report, draw the plot."""
    from coterie.cli.eval_text import print_report
    from coterie.cli.model_argument import load_with_bar

    check_plot(plot)
    if trace is not None:
        check_trace_output(trace)
    _check_tasks(asked)
    lm = load_with_bar(asked.model)
    report = run(lm, asked, folder, trace)
    if plot is not None:
        _draw(report, plot)
    if as_json:
        print_json(report.document)
    else:
        print_report(report)


def run(lm: "LanguageModel", asked: Asked, folder: Path, trace: Path | None = None) -> "Report":
    """The report; an interruption says how to go on."""
    options = asdict(asked)
    tasks = options.pop("tasks")
    del options["model"]
    with ExitStack() as stack:
        if trace is not None:
            options["recorder"] = stack.enter_context(_recorder(lm, trace))
        try:
            return _evaluator(asked)(lm, tasks, run_dir=folder, progress=stack.enter_context(bars()), **options)
        except KeyboardInterrupt:
            if (folder / "answers.jsonl").exists():
                note(f"the answers so far are kept: the same command with -o {folder} goes on")
            raise


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each name that is told of, one after the other."""
    current: list[Any] = ["", None]
    with ExitStack() as outer:

        def report(name: str, done: int, total: int) -> None:
            if current[0] != name:
                outer.pop_all().close()
                current[:] = name, outer.enter_context(progress(name, unit="items"))
            current[1](done, total)

        yield report


def _evaluator(asked: Asked) -> Callable[..., "Report"]:
    harness = (asked.settings or {}).get("harness")
    if harness is None:
        from coterie.eval.run import evaluate

        return evaluate
    if harness != "lm-eval":
        raise RequestError(f"--set harness={harness[:60]}: expected lm-eval")
    from coterie.eval.harness_run import evaluate_in_harness

    return evaluate_in_harness


def _check_tasks(asked: Asked) -> None:
    """What is wrong with the tasks is said before a model is loaded."""
    if "harness" in (asked.settings or {}):
        return
    from coterie.eval.chosen import choose
    from coterie.eval.rows import Files
    from coterie.eval.task import Context

    context = Context(
        Files(asked.data), asked.limit, asked.shots, asked.seed, asked.samples, asked.run_code, asked.settings or {}
    )
    choose(asked.tasks, context)


@contextmanager
def _recorder(lm: "LanguageModel", path: Path) -> Iterator[Any]:
    from coterie.engine.record import Recorder

    with Recorder(lm, path) as recorder:
        yield recorder
    note(f"{path} has the routing: coterie trace report {path}")


def _draw(report: "Report", path: Path) -> None:
    """The plots of the only task that has some (the second in FILE-2.svg, and so on), else the main scores as bars."""
    for number, plot in enumerate(_plots(report), 1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        write_plot(plot, place)
        note(f"{place} has the plot: {plot.title}")


def _plots(report: "Report") -> "list[Plot]":
    from coterie.eval.plot import scores_plot

    if len(report.tasks) == 1:
        plots = [plot for section in report.tasks[0].sections for plot in section.plots]
        if plots:
            return plots
    return [scores_plot(report)]
