"""`coterie eval MODEL TASK --set harness=lm-eval`: the tasks in lm-evaluation-harness itself, over the same rows.

The figures are the harness's; standard errors are computed here, over all questions of a task (the harness would draw
100,000 times for a perplexity, in as many processes as there are processors). What was answered before an interruption
is in the harness's own cache, in the run folder.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coterie.api import LanguageModel
from coterie.errors import RequestError, nearest
from coterie.eval.harness import register
from coterie.eval.harness_table import FORMS
from coterie.eval.harness_tasks import write_tasks
from coterie.eval.rows import Files
from coterie.eval.run import Report, TaskReport
from coterie.eval.run_file import RunFolder
from coterie.eval.task import Context, Metric

__all__ = ["evaluate_in_harness", "forms_of"]

_ALL = ("all", "multiple-choice")


def evaluate_in_harness(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    data: Path | None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    run_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **refused: Any,
) -> Report:
    """Like `coterie.eval.run.evaluate`, for the tasks that have a form for the harness."""
    for name, value in refused.items():
        if value:
            raise RequestError(f"{name} is not for harness=lm-eval: leave it out, or leave the harness out")
    names = forms_of(tasks)
    register()
    context = Context(Files(data), limit, shots, seed, settings=settings or {}, run_dir=run_dir, progress=progress)
    with RunFolder(run_dir, lm, context, tasks) as kept, _without_bars(), tempfile.TemporaryDirectory() as folder:
        write_tasks(folder, context.files, names, limit=limit, cache=Path(folder, "cache"))
        there = [name for name in names if context.files.find(FORMS[name].file) is not None]
        reports = [_ask(lm, name, folder, context) for name in there]
        return Report(reports, run_dir, kept.finish(reports, []))


def forms_of(tasks: Sequence[str]) -> list[str]:
    """Names in the table of forms for TASKs of the command line: a form's name, or its file's."""
    names: dict[str, None] = {}
    for asked in tasks:
        found = [name for name, form in FORMS.items() if asked in (name, form.file, *_ALL[:1])]
        if asked == "multiple-choice":
            found = [name for name, form in FORMS.items() if form.fields["output_type"] == "multiple_choice"]
        if not found:
            raise RequestError(f"{asked!r} has no form for lm-eval, expected one of {_listed()}{nearest(asked, FORMS)}")
        names |= dict.fromkeys(found)
    return list(names)


def _listed() -> str:
    return ", ".join([*FORMS, *_ALL])


def _ask(lm: LanguageModel, name: str, folder: str, context: Context) -> TaskReport:
    """What the harness's `simple_evaluate` does, but for the report on the machine: that takes git, pip and seconds."""
    import lm_eval
    from lm_eval.api.model import CachingLM
    from lm_eval.tasks import TaskManager

    from coterie.eval.harness_model import CoterieLM

    start = time.monotonic()
    asked: Any = CoterieLM(lm, progress=lambda _, done, total: context.progress(name, done, total))
    if context.run_dir is not None:
        asked = CachingLM(asked, str(context.run_dir / "harness.db"))
    loaded = TaskManager(include_path=folder, include_defaults=False).load([f"coterie_{name}"])
    for task in loaded["tasks"].values():
        fixed = task.get_config("num_fewshot")
        if fixed != 0:
            shots = (fixed or 0) if context.shots is None else context.shots
            _check_shots(name, task, shots)
            task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(context.seed)
    found = lm_eval.evaluate(lm=asked, task_dict=loaded, bootstrap_iters=0)
    return _report(name, found, f"lm-eval {lm_eval.__version__}", time.monotonic() - start)


def _check_shots(name: str, task: Any, shots: int) -> None:
    """The harness draws shots from a part's examples, or from its rows where it has none."""
    has_own = task.get_config("fewshot_split") is not None
    n = len(task.fewshot_docs()) - (not has_own) if shots else 0
    if shots > n:
        raise RequestError(
            f"{name} has {n} rows for examples, but {shots} shots are asked for: ask for fewer (--shots)"
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """The harness draws a bar for every subject's rows; ours is enough."""
    import datasets
    from tqdm import tqdm

    datasets.disable_progress_bars()
    drawn = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **options: drawn(self, *args, **{**options, "disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = drawn


def _report(name: str, found: Mapping[str, Any], version: str, seconds: float) -> TaskReport:
    whole, form = f"coterie_{name}", FORMS[name]
    parts: Mapping[str, Sequence[Mapping[str, Any]]] = found["samples"]
    everything = [sample for samples in parts.values() for sample in samples]
    metrics = _metrics(found["results"][whole], everything, "")
    for part, samples in parts.items():
        if part != whole:
            metrics += _metrics(found["results"][part], samples, part.removeprefix(f"{whole}_"))
    shots = found["n-shot"].get(next(iter(parts)), 0)
    main = form.metric_names[-1 if form.metric_names[-1] == "acc_norm" else 0]
    named = [metric.name for metric in metrics]
    main = next((n for n in (main, f"{main}, flexible-extract") if n in named), named[0] if named else main)
    protocol = f"{version}, {shots} shots, its form for this task"
    return TaskReport(name, protocol, main, metrics, seconds, len(everything))


def _metrics(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], group: str) -> list[Metric]:
    metrics = []
    for key, value in figures.items():
        name, _, kind = key.partition(",")
        if not isinstance(value, float) or math.isnan(value) or name.endswith("_stderr"):
            continue
        answers = [s[name] for s in samples if s.get("filter", "none") == kind and name in s]
        values = [float(answer) for answer in answers if isinstance(answer, int | float)]  # BBQ's are tuples
        named = name if kind == "none" else f"{name}, {kind}"
        metrics.append(Metric(named, value, _stderr(name, value, values), len(answers), None, group))
    return metrics


def _stderr(name: str, value: float, values: Sequence[float]) -> float | None:
    """sd / sqrt n; of a perplexity, exp of a mean, that times its value (the first order of its Taylor series)."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return error * value if name == "perplexity" else error
