"""Which tasks there are: a name for each, imported when it is asked for; a file of one's own is a task as well.

A name is that of the task's file without its ending, where it has one. Groups of names stand for several.
"""

from importlib import import_module
from pathlib import Path

from coterie.errors import RequestError, nearest
from coterie.eval.rows import ENDINGS
from coterie.eval.task import Context, Task, Work

__all__ = ["GROUPS", "TASKS", "is_file", "make", "names_of"]

TASKS = {
    "hellaswag": "coterie.eval.choice_tasks:HellaSwag",
    "mt_bench": "coterie.eval.mt_bench:MtBench",
    "perplexity": "coterie.eval.text_tasks:Perplexity",
    "quantized": "coterie.eval.quantized:Quantized",
    "passkey": "coterie.eval.passkey:Passkey",
    "retrieval": "coterie.eval.retrieval:Retrieval",
}
GROUPS = {
    "multiple-choice": ("hellaswag",),
    "long-context": ("passkey", "retrieval"),
}


def is_file(name: str) -> bool:
    """Whether a TASK is a file rather than a name."""
    return name.endswith(ENDINGS)


def names_of(asked: str, context: Context) -> list[str]:
    """The names that a TASK of the command line stands for: itself, those of a group, or all whose files are there."""
    if asked in TASKS or is_file(asked):
        return [asked]
    if asked in GROUPS or asked == "all":
        members = TASKS if asked == "all" else GROUPS[asked]
        return [name for name in members if _is_there(name, context)]
    there = ", ".join(name for name in TASKS if _is_there(name, context)) or "none"
    raise RequestError(
        f"{asked!r} is no task{nearest(asked, [*TASKS, *GROUPS, 'all'])}; the data at hand has {there}, and a .jsonl "
        "file is a task as well"
    )


def make(name: str, context: Context) -> Task | Work:
    """The task of a name, or of a file by the fields of its first row."""
    if is_file(name):
        from coterie.eval.file_task import task_of_file

        return task_of_file(Path(name), context)
    module, _, kind = TASKS[name].partition(":")
    task: Task | Work = getattr(import_module(module), kind)(context)
    return task


def _is_there(name: str, context: Context) -> bool:
    """Whether the file of a task is in the data folder; a task without one always is."""
    task = make(name, context)
    if isinstance(task, Work):
        return task.is_there(context)
    file = task.file
    return not file or context.files.find(file) is not None
