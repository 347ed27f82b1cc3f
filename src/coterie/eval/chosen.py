"""Which tasks a run is of, with everything that is wrong about them said before a model is loaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from coterie.errors import RequestError, nearest
from coterie.eval.registry import make, names_of
from coterie.eval.task import Context, Task, Work

__all__ = ["choose"]

_BOUNDS = {"limit": (1, 1 << 31), "shots": (0, 1000), "seed": (0, (1 << 63) - 1), "samples": (1, 10_000)}


def choose(asked: Sequence[str], context: Context) -> tuple[list[Task | Work], list[str]]:
    """The tasks in order, each once, and a sentence for each member of a group that cannot run.

    Raises `RequestError` for an unknown name, an option or setting that does not fit, or where nothing is left;
    `DataError` for a file that is not there.
    """
    for name, (least, most) in _BOUNDS.items():
        value = getattr(context, name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise RequestError(f"{name} is {value!r}, expected a whole number from {least} to {most}")
    found = [names_of(name, context) for name in asked]
    names = dict.fromkeys(name for members, _ in found for name in members)
    left_out = list(dict.fromkeys(sentence for _, sentences in found for sentence in sentences))
    if not names:
        hint = "" if context.files.folder is not None else " (pass --data DIR?)"
        raise RequestError(f"nothing of {', '.join(asked)} can run: {'; '.join(left_out[:3])}{hint}")
    tasks = [make(name, context) for name in names]
    _check_names(names, tasks)
    for task in tasks:
        _check(task, context)
    _check_settings(tasks, context)
    return tasks, left_out


def _check(task: Task | Work, context: Context) -> None:
    if task.runs_code and not context.run_code:
        raise RequestError(
            f"{task.name} runs code that the model writes: pass --run-code to allow that, in a sandboxed process"
        )
    if isinstance(task, Task) and task.file and not Path(task.file).is_file() and not context.files.find(task.file):
        context.files.rows(task.file)  # says what there is


def _check_names(asked: Iterable[str], tasks: Sequence[Task | Work]) -> None:
    """A report has one place for each name, and files of two folders may have the same."""
    taken: dict[str, str] = {}
    for one, task in zip(asked, tasks, strict=True):
        if (other := taken.setdefault(task.name, one)) != one:
            raise RequestError(
                f"{other} and {one} would both be called {task.name}: rename a file, or run one at a time"
            )


def _check_settings(tasks: Sequence[Task | Work], context: Context) -> None:
    known = sorted({name for task in tasks for name in task.settings})
    for name in context.settings:
        if name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "and none of these tasks has any"
            raise RequestError(f"there is no setting {name!r} for these tasks, {expected}{nearest(name, known)}")
