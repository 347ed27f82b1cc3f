"""What a run leaves behind: `answers.jsonl` as it goes on, `run.json` at its end, enough to do it again.

The first line of answers.jsonl says which model they are of and what else decides them; every other line is an item's
answers, with a digest of what was asked and the seconds since the one before. A run of another model in the same
folder is refused, and so is a second process.
"""

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from coterie.analysis.section import plain
from coterie.api import LanguageModel
from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.engine.score import Score
from coterie.errors import DataError
from coterie.eval.fingerprint import fingerprint
from coterie.eval.journal import Journal
from coterie.eval.task import Answer, Context, Item, Rolled
from coterie.train.lock import hold_run

if TYPE_CHECKING:
    from coterie.eval.run import TaskReport

__all__ = ["FORMAT", "RunFolder", "read_run"]

FORMAT = 1


class RunFolder:
    """The files of a run; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, lm: LanguageModel, context: Context, asked: Sequence[str]):
        self._folder, self._lm, self._context, self._asked = folder, lm, context, asked
        self._fingerprint = fingerprint(lm)
        self._path = None if folder is None else folder / "answers.jsonl"
        self._known: dict[tuple[str, str, str], list[Answer]] = {}
        self._seconds: dict[tuple[str, str, str], float] = {}
        with ExitStack() as held:
            if folder is not None:
                held.enter_context(hold_run(folder, "evaluating"))
            with disk_errors(folder or Path()):
                self._journal = held.enter_context(Journal(self._path))
            self._begin()
            self._held = held.pop_all()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.__exit__(kind, error, at)

    def answers(self, task: str, item: Item) -> list[Answer] | None:
        """What an interrupted run found out, if the same was asked."""
        return self._known.get((task, item.id, _digest(item)))

    def seconds(self, task: str, item: Item) -> float:
        """What those answers took then."""
        return self._seconds.get((task, item.id, _digest(item)), 0.0)

    def keep(self, task: str, item: Item, answers: list[Answer], seconds: float = 0.0) -> None:
        row = {"task": task, "id": item.id, "asked": _digest(item), "seconds": seconds, "answers": _packed(answers)}
        self._journal.add(row)

    @contextmanager
    def timing(self, task: str) -> Iterator[None]:
        """Count the seconds of a task that keeps its findings itself, also where it is interrupted."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            key = (task, "", self._settings_digest())
            self._seconds[key] = self._seconds.get(key, 0.0) + seconds
            self._journal.add({"task": task, "id": "", "asked": key[2], "seconds": seconds, "answers": []})

    def spent(self, task: str) -> float:
        """The seconds of a task's `timing`, of all parts of the run."""
        return self._seconds.get((task, "", self._settings_digest()), 0.0)

    def _settings_digest(self) -> str:
        return hashlib.sha256(repr(sorted(self._context.settings.items())).encode()).hexdigest()[:16]

    def finish(self, reports: "Sequence[TaskReport]", left_out: Sequence[str]) -> dict[str, Any]:
        """Write run.json and give its content."""
        document = self._document(reports) | {"left_out": list(left_out)}
        if self._folder is not None:
            with disk_errors(self._folder), new_file(self._folder / "run.json") as file:
                text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
                file.write(text.encode(errors="backslashreplace") + b"\n")  # a file's name need not be UTF-8
        return document

    def _begin(self) -> None:
        mine = {"format": FORMAT, "model": self._fingerprint, "seed": self._context.seed}
        rows = self._journal.rows
        if not rows:
            self._journal.add(mine)
            return
        theirs = {name: rows[0].get(name) for name in mine}
        if theirs != mine:
            differing = ", ".join(name for name in mine if theirs[name] != mine[name])
            raise DataError(
                f"{self._path} is of another run (another {differing}): name another folder with -o, or remove it"
            )
        for number, row in enumerate(rows[1:], 2):
            try:
                key = (str(row["task"]), str(row["id"]), str(row["asked"]))
                self._known[key] = [_unpacked(answer) for answer in row["answers"]]
                self._seconds[key] = (0.0 if key[1] else self._seconds.get(key, 0.0)) + float(row.get("seconds", 0.0))
            except (KeyError, TypeError, ValueError):
                raise DataError(
                    f"{self._path}, line {number} holds no answers: remove the file to begin anew"
                ) from None

    def _document(self, reports: "Sequence[TaskReport]") -> dict[str, Any]:
        lm, context = self._lm, self._context
        parameter = next(lm.model.parameters(), None)
        return {
            "format": FORMAT,
            "arguments": {
                "model": lm.name,
                "tasks": list(self._asked),
                "data": None if context.files.folder is None else str(context.files.folder),
                "limit": context.limit,
                "shots": context.shots,
                "samples": context.samples,
                "seed": context.seed,
                "run_code": context.run_code,
                "settings": dict(context.settings),
            },
            "model": {
                "name": lm.name,
                "fingerprint": self._fingerprint,
                "dtype": str(lm.model.dtype).removeprefix("torch."),
                "device": "cpu" if parameter is None else str(parameter.device),
            },
            "versions": {
                "coterie": version("coterie"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "files": {
                Path(path).name: {"sha256": read.sha256, "rows": len(read.rows)}
                for path, read in context.files.read.items()
            },
            "tasks": {report.name: _task(report) for report in reports},
        }


def read_run(path: Path) -> dict[str, Any]:
    """A run.json, or one in the folder named; a `DataError` where it is none."""
    path = path / "run.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected the run.json of an evaluation") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is no run.json of an evaluation that this version reads (format {FORMAT})")
    for name in ("arguments", "model", "tasks", "files"):
        if not isinstance(document.get(name), dict):
            raise DataError(f"{path} has no {name}: expected the run.json of an evaluation")
    return document


def _task(report: "TaskReport") -> dict[str, Any]:
    return {
        "protocol": report.protocol,
        "metric": report.main,
        "metrics": [plain(asdict(metric)) for metric in report.metrics],
        "items": report.n_items,
        "resumed": report.n_resumed,
        "tokens": report.n_tokens,
        "seconds": round(report.seconds, 3),
        "sections": [section.as_json() for section in report.sections],
        "notes": report.notes,
    }


def _digest(item: Item) -> str:
    return hashlib.sha256(repr(item.asks).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _packed(answers: list[Answer]) -> list[Any]:
    return [
        {"nats": a.nats, "tokens": a.n_tokens, "bytes": a.n_bytes}
        if isinstance(a, Rolled)
        else [s if isinstance(s, str) else [_finite(s.logprob), s.is_greedy, s.n_tokens, s.n_bytes] for s in a]
        for a in answers
    ]


def _finite(logprob: float) -> float | None:
    return None if math.isinf(logprob) else logprob  # JSON has no infinity


def _unpacked(answer: Any) -> Answer:
    if isinstance(answer, Mapping):
        return Rolled(float(answer["nats"]), int(answer["tokens"]), int(answer["bytes"]))
    if not isinstance(answer, list):
        raise TypeError
    if all(isinstance(one, str) for one in answer):
        return answer
    return [
        Score(-math.inf if lp is None else float(lp), bool(greedy), int(n), int(n_bytes))
        for lp, greedy, n, n_bytes in answer
    ]
