"""HumanEval and MBPP: programs that a model writes are run against tests (`sandbox.py`), only with `--run-code`.

pass@k is the unbiased estimate of Chen et al. 2021: of n samples c pass, and pass@k = 1 - C(n-c, k) / C(n, k), the
chance that k of them, drawn without replacement, hold one that passes. For n = 3, c = 1: pass@1 = 1/3, pass@2 = 2/3.
"""

import ast
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from math import comb

from coterie.analysis.section import Section
from coterie.errors import DataError
from coterie.eval.rows import text_of, texts_of
from coterie.eval.sandbox import Limits, Verdict, require, run
from coterie.eval.settings import real
from coterie.eval.task import Context, Item, Judged, Row
from coterie.eval.written import Written

__all__ = ["HumanEval", "Mbpp", "pass_at"]

_KS = (1, 10, 100)


def pass_at(k: int, n: int, n_passed: int) -> float:
    """The chance that of k programs out of n one passes, `n_passed` of the n do."""
    return 1.0 - comb(n - n_passed, k) / comb(n, k)


class _Program(Written):
    """`program` puts an answer and the tests of a row together."""

    metric = "pass@1"
    runs_code = True
    sampled = (0.8, 0.95)
    settings = (*Written.settings, "seconds")

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        options = {} if context is None else context.settings
        self._limits = Limits(seconds=real(options, "seconds", 3.0, least=0.1, most=600.0))
        self.protocol += f", {self._limits.seconds:g} seconds each"
        self._ends: dict[str, int] = {}
        self._n_items = self._n_judged = 0

    @abstractmethod
    def program(self, text: str, row: Row) -> str: ...

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        require()  # before the model writes anything
        items = super().items(rows, shots=shots, seed=seed)
        limit = None if self.context is None else self.context.limit
        self._n_items = len(items) if limit is None else min(limit, len(items))
        return items

    def identity(self, row: Row, number: int) -> str:
        return str(row.get("task_id", number))

    def score(self, text: str, row: Row) -> dict[str, float]:
        verdict = _run(self.program(text, row), self._limits)
        self._ends[verdict.status] = self._ends.get(verdict.status, 0) + 1
        return {"passed": float(verdict.is_passed)}

    def judge(self, item: Item, answers: list[list[str]]) -> dict[str, float]:
        n = len(answers[0])
        n_passed = sum(self.score(text, item.row)["passed"] > 0 for text in answers[0])
        self._n_judged += 1
        if self.context is not None:
            self.context.progress(f"{self.name}, tests", self._n_judged, max(self._n_items, self._n_judged))
        return {f"pass@{k}": pass_at(k, n, n_passed) for k in sorted({*(k for k in _KS if k <= n), n})}

    def sections(self, judged: list[Judged]) -> list[Section]:
        n = sum(self._ends.values())
        n_passed = self._ends.get("passed", 0)
        ends = tuple(sorted(self._ends.items(), key=lambda end: -end[1]))
        return [
            Section(
                f"{self.name}-ends", f"How the programs of {self.name} ended",
                f"Of {n} programs {n_passed} passed their tests.", ("end", "programs"), ends,
                note="Each ran alone in a sandbox: no network, no other process, no file but Python's own.",
                facts=dict(ends),
            )
        ]  # fmt: skip


@lru_cache(maxsize=4096)
def _run(program: str, limits: Limits) -> Verdict:
    """Samples are often the same program."""
    return run(program, limits)


class HumanEval(_Program):
    """Functions from their signature and docstring (Chen et al. 2021)."""

    name = file = "humaneval"
    fields = ("prompt", "entry_point", "test")
    takes_shots = False
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_tokens = 1024
    protocol = "0 shots, the function's head and docstring as they are; unit tests in a sandbox"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if not row["entry_point"].isidentifier():
            raise DataError(f"{where}: entry_point is {row['entry_point'][:60]!r}, expected the name of a function")

    def prompt(self, row: Row) -> str:
        return str(row["prompt"])

    def target(self, row: Row) -> str:
        return text_of(row, "canonical_solution", "a shot")

    def program(self, text: str, row: Row) -> str:
        return f"{row['prompt']}{text}\n{row['test']}\ncheck({row['entry_point']})\n"


class Mbpp(_Program):
    """Short functions from a sentence and three asserts (Austin et al. 2021)."""

    name = file = "mbpp"
    fields = ("text",)
    shots = 3
    joint = ""
    stop = ("[DONE]",)
    max_tokens = 256
    protocol = "form of Austin et al., the tests in the prompt; the same tests in a sandbox"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        text_of(row, "code", where)
        if row.get("test_setup_code") is not None:
            text_of(row, "test_setup_code", where, may_be_empty=True)
        for test in texts_of(row, "test_list", where):
            try:
                ast.parse(test)
            except (SyntaxError, ValueError, RecursionError):
                raise DataError(f"{where}: test_list has {test[:60]!r}, which is no Python") from None

    def prompt(self, row: Row) -> str:
        tests = "\n".join(row["test_list"])
        return (
            f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these "
            f"tests:\n\n{tests}\n[BEGIN]\n"
        )

    def target(self, row: Row) -> str:
        return f"{row['code']}\n[DONE]"

    def program(self, text: str, row: Row) -> str:
        setup = row.get("test_setup_code") or ""
        return "\n".join([setup, text, *row["test_list"], ""])
