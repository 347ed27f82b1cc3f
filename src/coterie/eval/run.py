"""An evaluation: tasks asked of a model, and what came of it, with protocol, uncertainty and seconds.

Answers are kept as they come (`run_file.py`), so an interrupted run goes on where it stopped: an answer counts again if
the same model was asked the same. A limit takes as many items of every group, by turns, so that none is left out.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.analysis.section import Section
from coterie.api import LanguageModel
from coterie.errors import CoterieError, DataError
from coterie.eval.ask import Asker
from coterie.eval.chosen import choose
from coterie.eval.rows import Files, Read
from coterie.eval.run_file import RunFolder
from coterie.eval.task import Answer, Context, Item, Metric, Task, Work

__all__ = ["Report", "TaskReport", "evaluate"]

Progress = Callable[[str, int, int], None]  # a task's name, items done, items in all


@dataclass(frozen=True)
class TaskReport:
    """`n_resumed` answers were taken from an interrupted run; `n_cut` asks lost the beginning of their context."""

    name: str
    protocol: str
    main: str
    metrics: list[Metric]
    seconds: float
    n_items: int
    n_resumed: int = 0
    n_cut: int = 0
    n_tokens: int = 0
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def headline(self) -> Metric | None:
        """The main metric over all."""
        return next((m for m in self.metrics if m.name == self.main and not m.group), None)


@dataclass(frozen=True)
class Report:
    tasks: list[TaskReport]
    folder: Path | None = None
    document: Mapping[str, Any] = field(default_factory=dict)  # run.json
    left_out: list[str] = field(default_factory=list)  # tasks of a group that cannot run, and why


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    samples: int | None = None,
    run_dir: str | Path | None = None,
    recorder: Any = None,
    run_code: bool = False,
    settings: Mapping[str, str] | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Report:
    """Ask `lm` every task, a name of `registry.TASKS` or a .jsonl file, and measure.

    Raises `RequestError` for an unknown task or an option that does not fit, `DataError` for a file with missing fields
    or an answer out of range; both before the model is asked anything.
    """
    folder = None if run_dir is None else Path(run_dir)
    context = Context(
        Files(None if data is None else Path(data)), limit, shots, seed, samples, run_code, settings or {}, recorder,
        folder, progress,
    )  # fmt: skip
    made, left_out = choose(tasks, context)
    prepared = [_prepare(lm, task, context) if isinstance(task, Task) else [] for task in made]
    with RunFolder(folder, lm, context, tasks) as kept:
        reports = list[TaskReport]()
        for task, items in zip(made, prepared, strict=True):
            try:
                reports.append(
                    _ask(lm, task, items, kept, context) if isinstance(task, Task) else _work(lm, task, kept, context)
                )
            except CoterieError as error:
                if task is made[-1] and not reports:
                    raise
                left_out.append(f"{task.name} stopped: {error}")
        return Report(reports, folder, kept.finish(reports, left_out), left_out)


def _prepare(lm: LanguageModel, task: Task, context: Context) -> list[Item]:
    """Rows read and checked, made into as many items as the limit says."""
    read = _read(task, context)
    for number, row in enumerate(read.rows):
        task.check(row, read.where(number))
    task.bind(lm)
    items = task.items(read.rows, shots=context.shots, seed=context.seed)
    if not items:
        raise DataError(f"{read.path} has no row that {task.name} asks about")
    return items if context.limit is None else _limited(items, context.limit)


def _read(task: Task, context: Context) -> Read:
    if not task.file:
        return Read(Path(), "", [], [])
    return (
        context.files.open(Path(task.file)) if task.file.endswith((".jsonl", ".gz")) else context.files.rows(task.file)
    )


def _limited(items: list[Item], limit: int) -> list[Item]:
    """`limit` items, of every group as many (one more of some), in the order they were in."""
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.group, []).append(place)
    turns = sorted((turn, group, place) for group, places in groups.items() for turn, place in enumerate(places))
    return [items[place] for place in sorted(place for _, _, place in turns[:limit])]


def _ask(lm: LanguageModel, task: Task, items: list[Item], kept: RunFolder, context: Context) -> TaskReport:
    start = time.monotonic()
    asker = Asker(lm, seed=context.seed, recorder=context.recorder)
    found: dict[int, list[Answer]] = {}
    places: dict[int, int] = {id(item): place for place, item in enumerate(items)}
    missing = []
    for place, item in enumerate(items):
        answers = kept.answers(task.name, item)
        if answers is None:
            missing.append(item)
        else:
            found[place] = answers
    n_resumed, before, last = len(found), math.fsum(kept.seconds(task.name, items[place]) for place in found), start

    def save(item: Item, answers: list[Answer]) -> None:
        nonlocal last
        now = time.monotonic()
        found[places[id(item)]] = answers
        kept.keep(task.name, item, answers, now - last)
        last = now
        context.progress(task.name, len(found), len(items))

    context.progress(task.name, len(found), len(items))
    asker.ask(missing, task.name, save)
    judged = [(item, task.judge(item, found[place])) for place, item in enumerate(items)]
    return TaskReport(
        task.name, task.protocol, task.metric, task.metrics(judged), before + time.monotonic() - start, len(items),
        n_resumed, asker.n_cut, asker.n_read, task.sections(judged), _notes(task, asker, n_resumed, lm, context),
    )  # fmt: skip


def _notes(task: Task, asker: Asker, n_resumed: int, lm: LanguageModel, context: Context) -> list[str]:
    notes = []
    if context.shots and not task.takes_shots:
        notes.append("takes no shots, so --shots changed nothing")
    if context.samples and not task.takes_samples:
        notes.append("draws no samples, so --samples changed nothing")
    if task.fewest_shots is not None:
        notes.append(f"has too few rows for so many shots: at least one question has only {task.fewest_shots}")
    if n_resumed and context.recorder is not None:
        notes.append(f"{n_resumed} answers were there already, so their routing is not in the trace")
    if asker.n_cut:
        limit = lm.config.max_position_embeddings
        notes.append(f"{asker.n_cut} prompts were longer than the context of {limit} tokens and lost their beginning")
    return notes


def _work(lm: LanguageModel, task: Work, kept: RunFolder, context: Context) -> TaskReport:
    with kept.timing(task.name):
        result = task.run(lm, context)
    return TaskReport(
        task.name, task.protocol, task.metric, result.metrics, kept.spent(task.name), result.n_items,
        n_tokens=result.n_tokens, sections=result.sections, notes=result.notes,
    )  # fmt: skip
