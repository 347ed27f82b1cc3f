"""A fact hidden in a long prompt and asked for at its end: what passkey and key-value retrieval have in common.

Each item is asked twice: what does the model write (greedy, exact match), and is the hidden value the likeliest of some
that look like it? The second shows something where a small model cannot write five digits. Prompts are as long as fits
`length` tokens of the model's own tokenizer, answer included, so the last length may be the context itself.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coterie.analysis.section import Section
from coterie.errors import RequestError
from coterie.eval.needle_grid import grid_sections
from coterie.eval.settings import whole, wholes
from coterie.eval.task import Choose, Context, Generate, Item, Judged, Metric, Row, Task, mean_metrics

if TYPE_CHECKING:
    from coterie.api import LanguageModel
    from coterie.tokenizer import Tokenizer

__all__ = ["Hidden", "Needle", "longest_that_fits"]

_SHORTEST_PROMPT = 32


@dataclass(frozen=True, slots=True)
class Hidden:
    """One prompt, the value it hides, and others of the same kind; `guess`: how often a guess would be right."""

    prompt: str
    value: str
    others: tuple[str, ...]
    guess: float


class Needle(Task):
    """`--set lengths=N,N,...`, `depths=PERCENT,...` and `trials=N` of each."""

    file = ""
    metric = "exact"
    takes_shots = False
    settings: tuple[str, ...] = ("lengths", "depths", "trials")

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        self._tokenizer: Tokenizer | None = None
        self._limit = 0

    def bind(self, lm: "LanguageModel") -> None:
        """Told of the model, whose tokenizer and context the prompts fit."""
        self._tokenizer, self._limit = lm.tokenizer, lm.config.max_position_embeddings

    @abstractmethod
    def hide(self, draw: random.Random, depth: float, excess: Callable[[str], int]) -> Hidden | None:
        """The longest prompt of no `excess` tokens, the value at `depth` from 0 to 1; None where none is as short."""

    @abstractmethod
    def spell(self, value: str) -> str:
        """A value as it follows the prompt."""

    @abstractmethod
    def read(self, written: str) -> str | None:
        """The value that an answer begins with; None where it begins with something else."""

    @property
    @abstractmethod
    def longest_value(self) -> str:
        """A value that takes as many tokens as any."""

    def check(self, row: Row, where: str) -> None:
        """There are no rows."""

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        """By length, depth and trial. The trials of a length are alike but for what is hidden where."""
        assert self._tokenizer is not None, "bind() comes first"
        settings = {} if self.context is None else self.context.settings
        lengths = wholes(settings, "lengths", _lengths(self._limit), least=_SHORTEST_PROMPT, most=self._limit)
        depths = wholes(settings, "depths", (0, 25, 50, 75, 100), least=0, most=100)
        n_trials = whole(settings, "trials", 8, least=1, most=10_000)
        n_answer = len(self._tokenizer.encode(self.spell(self.longest_value))) + 4
        found = [
            item
            for length in lengths
            for item in self._of_length(length, depths, n_trials, n_answer, seed, is_asked="lengths" in settings)
        ]
        if not found:
            raise RequestError(
                f"{self.name} needs longer prompts than the model's context of {self._limit} tokens holds"
            )
        return found

    def _of_length(
        self, length: int, depths: Sequence[int], n_trials: int, n_answer: int, seed: int, *, is_asked: bool
    ) -> list[Item]:
        found = []
        tokenizer = self._tokenizer
        assert tokenizer is not None
        for trial in range(n_trials):
            for depth in depths:
                draw = random.Random(f"{seed}/{self.name}/{length}/{trial}")  # the same for every depth
                hidden = self.hide(
                    draw, depth / 100, lambda text: len(tokenizer.encode(text, bos=True)) + n_answer - length
                )
                if hidden is None:
                    if is_asked:
                        raise RequestError(f"{length} tokens are too few for a prompt of {self.name}: ask for longer")
                    return []
                found.append(self._item(hidden, length, depth, trial, n_answer))
        return found

    def _item(self, hidden: Hidden, length: int, depth: int, trial: int, n_answer: int) -> Item:
        choose = Choose(hidden.prompt, tuple(self.spell(value) for value in (hidden.value, *hidden.others)))
        asks = (choose, Generate(hidden.prompt, stop=("\n",), max_tokens=n_answer))
        n = len(choose.continuations)
        row = {"length": length, "depth": depth, "value": hidden.value, "candidates": n, "guess": hidden.guess}
        return Item(f"{length}/{depth}/{trial}", asks, row, f"{length} tokens")

    def judge(self, item: Item, answers: list[Any]) -> dict[str, float]:
        """`exact`: the value is what was written. `ranked`: it is the likeliest of the candidates (shared where they
        tie). `rank`: its place among them, 1 the best.
        """
        scores, written = answers
        logprobs = [score.logprob for score in scores]
        n_above = sum(lp > logprobs[0] for lp in logprobs)
        n_ties = sum(lp == logprobs[0] for lp in logprobs)
        return {
            "exact": float(self.read(written[0]) == item.row["value"]),
            "ranked": 0.0 if n_above else 1 / n_ties,
            "rank": n_above + (n_ties + 1) / 2,
        }

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        """Over all, by length and by depth."""
        found = []
        for kind, spelled in (("", ""), ("length", "{} tokens"), ("depth", "{} % deep")):
            groups: dict[int, list[Judged]] = {}
            for item, numbers in judged:
                groups.setdefault(item.row[kind] if kind else 0, []).append((item, numbers))
            for value in sorted(groups):
                found += _group_metrics(spelled.format(value), groups[value])
        return found

    def sections(self, judged: list[Judged]) -> list[Section]:
        return grid_sections(self.name, judged)


def longest_that_fits(make: Callable[[int], str], excess: Callable[[str], int], least: int) -> int | None:
    """The greatest n >= least for which `make(n)` is not too long; None where `make(least)` is.

    `excess`: by how many tokens a text is too long. Texts grow by about the same with each n, so the first guess is
    near, and a text of the context's length is encoded about five times.
    """
    first = excess(make(least))
    if first > 0:
        return None
    each = max(1.0, (excess(make(least + 8)) - first) / 8)
    low, step = least, 1
    high = least + 1 + int(-first / each)
    while excess(make(high)) <= 0:
        low, high, step = high, high + step, 2 * step
    step = 1
    while high - low > 1:  # step down from the guess, further each time, and halve what is left
        middle = max(high - step, (low + high) // 2)
        low, high = (middle, high) if excess(make(middle)) <= 0 else (low, middle)
        step *= 2
    return low


def _lengths(limit: int) -> tuple[int, ...]:
    """The context, a half, a quarter and an eighth of it, as far as a prompt could fit."""
    return tuple(sorted({n for n in (limit // 8, limit // 4, limit // 2, limit) if n >= _SHORTEST_PROMPT}))


def _group_metrics(group: str, members: list[Judged]) -> list[Metric]:
    chances = {
        "exact": math.fsum(item.row["guess"] for item, _ in members) / len(members),
        "ranked": math.fsum(1 / item.row["candidates"] for item, _ in members) / len(members),
        "rank": math.fsum((item.row["candidates"] + 1) / 2 for item, _ in members) / len(members),
    }
    return [
        Metric(m.name, m.value, m.stderr, m.n, chances[m.name], group)
        for m in mean_metrics([(Item(i.id, i.asks, i.row), numbers) for i, numbers in members], "exact")
    ]
