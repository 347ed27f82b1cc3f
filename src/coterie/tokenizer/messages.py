"""Conversations as they come in, checked: roles, content, order.

What is accepted is what `mistral-common` accepts (the assistant may speak first, turns of one role may follow each
other: they are merged with a blank line between), and a little more: system text anywhere, empty answers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coterie.errors import RequestError, nearest

__all__ = ["Message", "merge", "read_messages", "system_text"]

_ROLES = ("system", "user", "assistant")
_KEYS = ("role", "content", "prefix")
_BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Message:
    """One turn. `prefix`: a last assistant turn that the model shall continue, rather than answer."""

    role: str
    content: str
    prefix: bool = False


def read_messages(messages: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    """The conversation, each turn checked; `RequestError` says which one is wrong and what was expected."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise RequestError(f"messages must be a list of turns with a role and a content, not {type(messages).__name__}")
    turns = [_read_turn(turn, i) for i, turn in enumerate(messages)]
    if not turns:
        raise RequestError("messages is empty; expected at least one turn with the role 'user'")
    spoken = [i for i, turn in enumerate(turns) if turn.role != "system"]
    if spoken and turns[spoken[-1]].role == "assistant" and not turns[spoken[-1]].prefix:
        raise RequestError(
            f"messages[{spoken[-1]}] is the last turn and the assistant's; expected a turn of the user's after it, or "
            '"prefix": true to have it continued'
        )
    for i, turn in enumerate(turns):
        if turn.prefix and (turn.role != "assistant" or i != len(turns) - 1):
            raise RequestError(f"messages[{i}] has a prefix; only an assistant turn at the end can be continued")
    return turns


def merge(turns: Iterable[Message]) -> list[Message]:
    """Consecutive turns of a role become one, their non-empty contents joined by a blank line."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            contents = [content for content in (merged[-1].content, turn.content) if content]
            merged[-1] = replace(turn, content=_BLANK_LINE.join(contents))
        else:
            merged.append(turn)
    return merged


def system_text(turns: Iterable[Message]) -> str:
    """All system text of the conversation, wherever it stands, joined by blank lines."""
    return _BLANK_LINE.join(turn.content for turn in turns if turn.role == "system" and turn.content)


def _read_turn(turn: Any, i: int) -> Message:
    if isinstance(turn, Message):
        turn = {"role": turn.role, "content": turn.content, "prefix": turn.prefix}
    if not isinstance(turn, Mapping):
        raise RequestError(f"messages[{i}] must be an object with a role and a content, not {type(turn).__name__}")
    for key, value in turn.items():
        if key not in _KEYS and value is not None:
            hint = nearest(str(key), _KEYS)
            raise RequestError(f"messages[{i}] has the unknown key {key!r}{hint}; known: role, content, prefix")
    role, content, prefix = turn.get("role"), turn.get("content"), turn.get("prefix")
    if role not in _ROLES:
        hint = nearest(role, _ROLES) if isinstance(role, str) else ""
        raise RequestError(f"messages[{i}] has the role {role!r}; expected 'system', 'user' or 'assistant'{hint}")
    if not isinstance(content, str):
        raise RequestError(f"messages[{i}] has a content of type {type(content).__name__}; expected a string")
    if prefix is not None and not isinstance(prefix, bool):
        raise RequestError(f"messages[{i}] has a prefix of type {type(prefix).__name__}; expected true or false")
    return Message(role, content, bool(prefix))
