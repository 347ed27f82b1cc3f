"""A model's side of MT-bench: conversations of two turns, decoded together, each written down when it is whole.

The temperature goes by category: 0.7 where taste counts, a little for explanations, none where there is one right
answer (FastChat's table). A model without a chat form continues the texts of the turns, one a line.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams
from coterie.errors import DataError
from coterie.eval.journal import Journal
from coterie.eval.rows import text_of, texts_of
from coterie.tokenizer.chat import Message

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["NO_ROOM", "TEMPERATURES", "Answers", "Conversation", "answer_all", "read_conversation"]

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # the other categories: 0
_MOST_TURNS = 8
_MARKS = 32  # tokens allowed for the marks of a turn that is still to come
NO_ROOM = "no room"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the user says, turn by turn; `references` are empty texts where there are none."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, 0.0)


@dataclass(slots=True)
class Answers:
    """What the model said. `finish`: "stop", "length", or "no room" where the context was full before it began."""

    key: str  # of everything that the answers depend on
    id: str
    category: str
    model: str
    turns: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)


def read_conversation(row: dict[str, Any], where: str) -> Conversation:
    """A row of mt_bench.jsonl, checked: `DataError` names what is missing or wrong."""
    turns, category = texts_of(row, "turns", where), text_of(row, "category", where)
    if len(turns) > _MOST_TURNS or not all(turn.strip() for turn in turns):
        raise DataError(f"{where}: turns must be 1 to {_MOST_TURNS} texts that are not empty")
    references = texts_of(row, "reference", where, fewest=0) if row.get("reference") is not None else []
    if len(references) > len(turns):
        raise DataError(f"{where}: reference has {len(references)} texts for {len(turns)} turns")
    name = row.get("question_id")
    if type(name) not in (str, int) or name == "":
        raise DataError(f"{where}: question_id is {name!r}, expected a number or a text")
    padded = (*references, *[""] * (len(turns) - len(references)))
    return Conversation(str(name), category, tuple(turns), padded)


def answer_all(
    lm: "LanguageModel",
    conversations: Sequence[Conversation],
    journal: Journal,
    *,
    max_tokens: int = 1024,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seen: Callable[[list[int]], None] = lambda ids: None,
) -> dict[str, Answers]:
    """The answers to all, by id: those of the journal that were given to the same question, and new ones.

    `seen` is given the token ids of each new conversation.
    """
    keys = {c.id: _key(lm, c, max_tokens, seed) for c in conversations}
    known = {row["key"]: Answers(**row) for row in journal.rows}
    done = {c.id: known[keys[c.id]] for c in conversations if keys[c.id] in known}
    talks = _Talks(lm, max_tokens, seed)
    for c in conversations:
        if c.id not in done:
            talks.begin(c, Answers(keys[c.id], c.id, c.category, lm.name))
    progress(len(done), len(conversations))
    for answers, ids in talks.run():
        journal.add(asdict(answers))
        seen(ids)
        done[answers.id] = answers
        progress(len(done), len(conversations))
    return done


class _Talks:
    """Conversations in one engine; the next turn joins when the one before it has been answered."""

    def __init__(self, lm: "LanguageModel", max_tokens: int, seed: int):
        self._lm, self._max_tokens, self._seed = lm, max_tokens, seed
        self._engine = Engine(lm.model, lm.tokenizer)
        self._open: dict[int, tuple[Conversation, Answers, list[int]]] = {}  # by number of the request; tokens so far
        self._whole: list[tuple[Answers, list[int]]] = []

    def begin(self, conversation: Conversation, answers: Answers) -> None:
        self._ask(conversation, answers, [])

    def run(self) -> Iterator[tuple[Answers, list[int]]]:
        """Each conversation's answers when it is whole, and the ids of all of it as the model read and wrote them."""
        while True:
            yield from self._whole
            self._whole = []
            if self._engine.is_idle:
                return
            for event in self._engine.step():
                if event.cause is not None:
                    raise event.cause
                _, answers, ids = self._open[event.request]
                answers.turns[-1] += event.text
                if event.token_id is not None:
                    answers.n_tokens[-1] += 1
                    ids.append(event.token_id)
                if event.finish_reason is not None:
                    answers.finish[-1] = event.finish_reason
                    self._ask(*self._open.pop(event.request))

    def _ask(self, conversation: Conversation, answers: Answers, ids: list[int]) -> None:
        """Put the next turn to the model, if there is one and room for an answer."""
        if len(answers.turns) == len(conversation.turns):
            self._whole.append((answers, ids))
            return
        request = self._request(conversation, answers.turns)
        answers.turns.append("")
        answers.finish.append(NO_ROOM)
        answers.n_tokens.append(0)
        if request is None:
            self._ask(conversation, answers, ids)
        else:
            self._open[self._engine.add(request)] = conversation, answers, [*request.prompt_ids]

    def _request(self, c: Conversation, said: list[str]) -> Request | None:
        """The conversation so far as a request; the room that is left is shared by the turns that are left."""
        n = len(said)
        past = [m for q, a in zip(c.turns, said, strict=False) for m in (Message("user", q), Message("assistant", a))]
        ids, stop, stop_ids = _encode(self._lm, [*past, Message("user", c.turns[n])])
        later = sum(len(self._lm.tokenizer.encode(q)) + _MARKS for q in c.turns[n + 1 :])
        room = (self._lm.config.max_position_embeddings - len(ids) - later) // (len(c.turns) - n)
        if room < 1:
            return None
        params = SamplingParams(
            max_tokens=min(self._max_tokens, room),
            temperature=c.temperature,
            seed=self._seed,
            stop=stop,
            stop_token_ids=stop_ids,
        )
        return Request(ids, params, context_ids=ids if self._lm.chat_form is None else ())


def _encode(lm: "LanguageModel", messages: list[Message]) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """Ids, and the texts and ids that end an answer, as `lm.chat` has them."""
    form = lm.chat_form
    if form is None:
        return lm.encode("\n".join(m.content for m in messages if m.content)), (), ()
    ids = tuple(form.encode(messages, lm.tokenizer))
    return ids, tuple(form.stop_strings), tuple(form.stop_ids(lm.tokenizer))


def _key(lm: "LanguageModel", c: Conversation, max_tokens: int, seed: int) -> str:
    form = lm.chat_form.name if lm.chat_form is not None else ""
    parts = [lm.name, form, c.id, c.category, list(c.turns), c.temperature, max_tokens, seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
