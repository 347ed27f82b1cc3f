"""Conversations as they come in, checked: roles, content, order.

What is accepted is what `mistral-common` accepts (the assistant may speak first, turns of one role may follow each
other: they are merged with a blank line between), and a little more: system text anywhere, empty answers. Calls of
tools and their results are turns too: an assistant's `tool_calls`, each answered by a turn of the role "tool" before
anybody else speaks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coterie.errors import RequestError, nearest
from coterie.tokenizer.tool_calls import ToolCall, read_calls

__all__ = ["Message", "merge", "read_messages", "system_text"]

_ROLES = ("system", "user", "assistant", "tool")
_KEYS = ("role", "content", "prefix", "tool_calls", "tool_call_id", "name")
_BLANK_LINE = "\n\n"
_LONGEST_NAME = 256


@dataclass(frozen=True)
class Message:
    """One turn. `prefix`: a last assistant turn that the model shall continue, rather than answer.

    `tool_calls` are an assistant's; `tool_call_id` says which one a "tool" turn answers, `name` which tool that was.
    """

    role: str
    content: str
    prefix: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


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
    return _with_names(turns)


def merge(turns: Iterable[Message]) -> list[Message]:
    """Turns of a role in a row become one, their non-empty contents joined by a blank line; results of tools stay."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role != "tool":
            contents = [content for content in (merged[-1].content, turn.content) if content]
            calls = (*merged[-1].tool_calls, *turn.tool_calls)
            merged[-1] = replace(turn, content=_BLANK_LINE.join(contents), tool_calls=calls)
        else:
            merged.append(turn)
    return merged


def system_text(turns: Iterable[Message]) -> str:
    """All system text of the conversation, wherever it stands, joined by blank lines."""
    return _BLANK_LINE.join(turn.content for turn in turns if turn.role == "system" and turn.content)


def _with_names(turns: list[Message]) -> list[Message]:
    """The turns, each result with the name of its tool; `RequestError` where calls and results do not match."""
    open_calls: dict[str, str] = {}
    named = []
    for i, turn in enumerate(turns):
        if turn.role == "tool":
            if turn.tool_call_id not in open_calls:
                raise RequestError(
                    f"messages[{i}] has the tool_call_id {_shown(turn.tool_call_id)}, which no tool call of the "
                    "assistant's turn before it has"
                )
            turn = replace(turn, name=open_calls.pop(turn.tool_call_id))
        elif (
            open_calls and turn.role != "system" and not (turn.role == "assistant" and turns[i - 1].role == "assistant")
        ):
            raise RequestError(
                f"messages[{i}] comes before the tool call {_shown(next(iter(open_calls)))} has its result; expected a "
                "turn of the role 'tool' for each call"
            )
        for call in turn.tool_calls:
            if call.id in open_calls:
                raise RequestError(f"messages[{i}] has two tool calls with the id {_shown(call.id)}")
            open_calls[call.id] = call.name
        named.append(turn)
    return named


def _read_turn(turn: Any, i: int) -> Message:
    if isinstance(turn, Message):
        turn = {key: getattr(turn, key) for key in _KEYS} | {"tool_calls": turn.tool_calls or None}
    if not isinstance(turn, Mapping):
        raise RequestError(f"messages[{i}] must be an object with a role and a content, not {type(turn).__name__}")
    for key, value in turn.items():
        if key not in _KEYS and value is not None:
            hint = nearest(str(key), _KEYS)
            raise RequestError(f"messages[{i}] has the unknown key {key!r}{hint}; known: {', '.join(_KEYS)}")
    role, prefix = turn.get("role"), turn.get("prefix")
    if role not in _ROLES:
        hint = nearest(role, _ROLES) if isinstance(role, str) else ""
        raise RequestError(f"messages[{i}] has the role {_shown(role)}; expected {_listed(_ROLES)}{hint}")
    calls = read_calls(turn.get("tool_calls"), f"messages[{i}]")
    if calls and role != "assistant":
        raise RequestError(f"messages[{i}] has tool_calls; only an assistant turn can have them")
    if prefix is not None and not isinstance(prefix, bool):
        raise RequestError(f"messages[{i}] has a prefix of type {type(prefix).__name__}; expected true or false")
    if prefix and calls:
        raise RequestError(f"messages[{i}] has a prefix and tool_calls; only text can be continued")
    content = "" if calls and turn.get("content") is None else _text(turn.get("content"), i)
    names = [_name(turn.get(key), key, role, i) for key in ("tool_call_id", "name")]
    return Message(role, content, bool(prefix), calls, *names)


def _text(content: Any, i: int) -> str:
    """A string, or the text parts of a list joined by a blank line, as mistral-common does."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(f"messages[{i}] has a content of type {type(content).__name__}; expected a string")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text":
            raise RequestError(f"messages[{i}] has a content part of type {_shown(kind)}; only 'text' can be read")
        if not isinstance(part.get("text"), str):
            raise RequestError(f"messages[{i}] has a content part without a text")
        texts.append(part["text"])
    return _BLANK_LINE.join(text for text in texts if text)


def _name(value: Any, key: str, role: str, i: int) -> str | None:
    """The value of `tool_call_id` or `name`, which results of tools have; the id they must have."""
    if value is None and (role != "tool" or key == "name"):
        return None
    if role != "tool":
        raise RequestError(f"messages[{i}] has a {key}; only a turn of the role 'tool' can have one")
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise RequestError(
            f"messages[{i}] has the {key} {_shown(value)}; expected a string of 1 to {_LONGEST_NAME} characters"
        )
    return value


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
