"""What becomes a task file of lm-evaluation-harness: a form, and functions named in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Form", "Function"]


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a task file names, by its dotted path."""

    name: str


@dataclass(frozen=True, slots=True)
class Form:
    """`by`: the field whose values are tasks of their own. `keep`: the fields that the templates read.

    `include` is a task file of the harness's own, from its folder of tasks, which `fields` override; `adapt` gives a
    row the fields that such a file reads. `of_part` has the fields that differ from part to part.
    """

    file: str
    keep: tuple[str, ...]
    fields: Mapping[str, Any]
    by: str | None = None
    of_part: Callable[[str], Mapping[str, Any]] | None = None
    include: str = ""  # may hold {part}
    metrics: tuple[str, ...] = ()  # of an included file; else those of `fields`
    adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: row

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.metrics or tuple(metric["metric"] for metric in self.fields["metric_list"])
