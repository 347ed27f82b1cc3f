"""What a task is: rows of a file become questions (asks), a model's answers to them become numbers.

A task never meets a model: it says what to ask, `eval/run.py` asks any model, batched, and hands the answers back.
Work that is no asking and answering (perplexity by context length, quantised against original) has a method `run`
instead; see `Work`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coterie.analysis.section import Section
from coterie.engine.score import Score

if TYPE_CHECKING:
    from pathlib import Path

    from coterie.api import LanguageModel
    from coterie.eval.rows import Files

__all__ = [
    "Answer", "Ask", "Choose", "Context", "Generate", "Item", "Judged", "Message", "Metric", "Rolled", "Rolling", "Row",
    "Task", "TaskResult", "Work", "mean_metrics",
]  # fmt: skip

Row = dict[str, Any]
Message = Mapping[str, str]  # {"role", "content"}


@dataclass(frozen=True, slots=True)
class Choose:
    """How likely is each continuation after the context? The answer: a `Score` for each, in order."""

    context: str
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generate:
    """What does the model write? The answer: `n` texts, each cut before the first stop string.

    A prompt of messages is read in the model's chat form, or as their texts where it has none.
    """

    prompt: str | tuple[Message, ...]
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Rolling:
    """How likely is a whole text, every token scored once? The answer: a `Rolled`."""

    text: str


@dataclass(frozen=True, slots=True)
class Rolled:
    nats: float
    n_tokens: int
    n_bytes: int


Ask = Choose | Generate | Rolling
Answer = list[Score] | list[str] | Rolled


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task. `id` is unique within it; `group`: a subject, a language, a category of it."""

    id: str
    asks: tuple[Ask, ...]
    row: Row
    group: str = ""


Judged = tuple[Item, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """`stderr` is None where it has no meaning or n is 1; `group` "" is over all."""

    name: str
    value: float
    stderr: float | None
    n: int
    chance: float | None = None
    group: str = ""


@dataclass(frozen=True)
class TaskResult:
    """What a task found: metrics, and for the terminal, the page and `--plot` as many sections as it likes."""

    metrics: list[Metric]
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_items: int = 0
    n_tokens: int = 0  # read by the model


@dataclass(frozen=True)
class Context:
    """What a run was asked for. `settings` are the `--set NAME=VALUE` of the command, as text."""

    files: "Files"
    limit: int | None = None
    shots: int | None = None
    seed: int = 0
    samples: int | None = None
    run_code: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    recorder: Any = None
    run_dir: "Path | None" = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


class Task(ABC):
    """One benchmark. Rows are checked, made into items, and the answers judged; the figures are over all items."""

    name: str
    file: str  # the stem of FILE.jsonl or FILE.jsonl.gz; "" where the task makes its questions up
    metric: str  # the main one, by name
    protocol: str  # in one sentence: shots, form, normalisation
    shots: int = 0  # where --shots does not say
    takes_shots: bool = True  # False: --shots changes nothing
    takes_samples: bool = False  # True: --samples says how many answers are drawn
    fewest_shots: int | None = None  # before a question, once `items` had too few rows for all that were asked for
    runs_code = False  # True: needs --run-code
    samples: int = 1  # where --samples does not say; answers drawn of a `Generate`
    settings: tuple[str, ...] = ()  # names that --set takes

    def __init__(self, context: Context | None = None):
        """`context` is what the run was asked for: `self.context.settings`, `.samples`, `.shots`."""
        self.context = context

    def is_there(self, context: Context) -> bool:
        """Whether its file is; a group of tasks leaves out one that has none."""
        return not self.file or context.files.find(self.file) is not None

    def bind(self, lm: "LanguageModel") -> None:  # noqa: B027 most tasks ask every model the same
        """Told of the model before `items`, for questions that must fit its tokenizer and context."""

    @abstractmethod
    def check(self, row: Row, where: str) -> None:
        """Raise a `DataError` that begins with `where` (file and line) for a field that is missing or impossible."""

    @abstractmethod
    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        """The questions; rows have been checked. `shots` None is the task's own number."""

    @abstractmethod
    def judge(self, item: Item, answers: list[Any]) -> dict[str, float]:
        """Numbers by metric from one answer for each ask."""

    def chance(self, items: Sequence[Item]) -> float | None:
        """What guessing gives, in the main metric; None where that is nothing."""
        return None

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """Means with standard errors, over all and by group."""
        return mean_metrics(judged, self.metric, self.chance)

    def sections(self, judged: list[Judged]) -> list[Section]:
        """Tables and plots beside the metrics."""
        return []


class Work(ABC):
    """A task that does its own work: it has no rows, or reads the model in its own way."""

    name: str
    file: str = ""
    metric: str
    protocol: str
    runs_code = False
    settings: tuple[str, ...] = ()

    def __init__(self, context: Context | None = None):
        self.context = context

    def is_there(self, context: Context) -> bool:
        """Whether a run of all tasks has what this one needs."""
        return not self.file or context.files.find(self.file) is not None

    @abstractmethod
    def run(self, lm: "LanguageModel", context: Context) -> TaskResult:
        """`context.files` finds files, `context.progress` is told of steps, `context.settings` has options."""


def mean_metrics(
    judged: Sequence[Judged], main: str, chance: Callable[[Sequence[Item]], float | None] = lambda items: None
) -> list[Metric]:
    """Mean and standard error (sd / sqrt n, n - 1 in the sd) of each number, over all and then by group."""
    groups: dict[str, list[Judged]] = {"": list(judged)}
    for item, numbers in judged:
        if item.group:
            groups.setdefault(item.group, []).append((item, numbers))
    found = []
    for group, members in groups.items():
        names = dict.fromkeys(name for _, numbers in members for name in numbers)
        for name in sorted(names, key=lambda name: name != main):
            values = [numbers[name] for _, numbers in members if name in numbers]
            guessed = chance([item for item, _ in members]) if name == main else None
            found.append(Metric(name, math.fsum(values) / len(values), _stderr(values), len(values), guessed, group))
    return found


def _stderr(values: Sequence[float]) -> float | None:
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
