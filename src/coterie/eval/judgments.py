"""Verdicts that are remembered: a question that has been judged before, word for word by the same judge, is not asked.

What could not be read or did not come is not remembered, so the same command asks for it again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.eval.endpoint import Messages
from coterie.eval.journal import Journal
from coterie.eval.judge import Judge, Question, Verdict

__all__ = ["Sought", "ask_all"]


@dataclass(frozen=True, slots=True)
class Sought:
    """A verdict that is wanted; `about` (a question, a turn, an order) goes into the journal beside it."""

    about: Mapping[str, Any]
    messages: Messages
    read: Callable[[str], Verdict | None]
    reminder: str


def ask_all(
    judge: Judge, journal: Journal, sought: Sequence[Sought], progress: Callable[[int, int], None]
) -> list[Verdict | None]:
    """One verdict for each, None where there is none; `judge.counts` says why."""
    keys = [_key(judge.endpoint.model, s.messages) for s in sought]
    known: dict[str, Verdict] = {row["key"]: row["value"] for row in journal.rows if row["value"] is not None}
    missing = {key: s for key, s in zip(keys, sought, strict=True) if key not in known}
    n_known = len(sought) - len(missing)
    judge.counts[""] += sum(key in known for key in keys)
    progress(n_known, len(sought))
    questions = [Question(key, s.messages, s.read, s.reminder) for key, s in missing.items()]
    for n, (question, outcome) in enumerate(judge.ask_all(questions), 1):
        about = {**missing[question.key].about, "judge": judge.endpoint.model}
        journal.add(
            {"key": question.key, **about, "value": outcome.value, "reason": outcome.reason, "said": outcome.said}
        )
        if outcome.value is not None:
            known[question.key] = outcome.value
        progress(n_known + n, len(sought))
    return [known.get(key) for key in keys]


def _key(model: str, messages: Messages) -> str:
    return hashlib.sha256(json.dumps([model, list(messages)]).encode()).hexdigest()[:16]
