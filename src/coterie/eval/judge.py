"""Asks a judge many questions at once and reads its verdicts; what cannot be read or does not come is counted.

A verdict that cannot be read is asked for once more, with what the judge said and a reminder of the form. A judge that
leaves several questions in a row without any answer is taken to be gone: the rest is not asked.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from coterie.eval.endpoint import Endpoint, Messages, Unanswered

__all__ = ["Judge", "Outcome", "Question", "Verdict"]

Verdict = float | str
Reason = Literal["", "nonsense", "unanswered"]
_SHOWN = 20_000  # characters of a judgement that are kept


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, how to read the answer (None: it cannot be read), and what to say then."""

    key: str
    messages: Messages
    read: Callable[[str], Verdict | None]
    reminder: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """`value` is None where `reason` is not empty; `said` is what the judge said, or why there is nothing."""

    value: Verdict | None
    reason: Reason
    said: str


class Judge:
    """`ask_all` yields outcomes as they come; `counts` has how many there were of each reason ("" for verdicts)."""

    def __init__(self, endpoint: Endpoint, concurrency: int = 4):
        self.endpoint = endpoint
        self.counts: Counter[Reason] = Counter()
        self.why_gone = ""  # a sentence, once the judge is taken to be gone
        self.last_reason = ""  # of a question that got no answer
        self._concurrency = concurrency
        self._in_a_row = 0
        self._lock = threading.Lock()

    def ask_all(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Outcome]]:
        """Each question once, in the order in which verdicts come. Leaving the loop early ends what is under way."""
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        left = iter(questions)
        running: dict[Future[Outcome], Question] = {}
        try:
            while True:
                while len(running) < self._concurrency and (question := next(left, None)) is not None:
                    running[pool.submit(self._ask, question)] = question
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    question, outcome = running.pop(future), future.result()
                    self.counts[outcome.reason] += 1
                    yield question, outcome
        except BaseException:
            self.endpoint.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, question: Question) -> Outcome:
        if self.why_gone:
            return Outcome(None, "unanswered", f"not asked: {self.why_gone}")
        try:
            said = self.endpoint.ask(question.messages)
            value = question.read(said)
            if value is None:
                value, said = self._ask_again(question, said)
        except Unanswered as e:
            self._miss(e)
            return Outcome(None, "unanswered", e.reason)
        with self._lock:
            self._in_a_row = 0
        return Outcome(value, "" if value is not None else "nonsense", said[:_SHOWN])

    def _ask_again(self, question: Question, said: str) -> tuple[Verdict | None, str]:
        turns = [{"role": "assistant", "content": said[:_SHOWN]}, {"role": "user", "content": question.reminder}]
        try:
            more = self.endpoint.ask([*question.messages, *turns])
        except Unanswered:
            return None, said
        return question.read(more), f"{said[:_SHOWN]}\n---\n{more}"

    def _miss(self, e: Unanswered) -> None:
        with self._lock:
            self._in_a_row += 1
            self.last_reason = e.reason
            if e.is_hopeless:
                self.why_gone = e.reason
            elif self._in_a_row >= max(3, self._concurrency):
                self.why_gone = f"{self._in_a_row} questions in a row got no answer ({e.reason})"
