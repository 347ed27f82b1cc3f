"""Tools for a model that was never trained on them: described in the first turn, calls and results as plain text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.tokenizer.messages import Message, read_messages
from coterie.tokenizer.tool_calls import loaded

__all__ = ["emulated_messages"]

_ABOUT = (
    "You can call these functions, given as a JSON list with the JSON schema of their parameters:\n{tools}\n"
    'To call functions, answer with nothing but a JSON list such as [{{"name": "the function", "arguments": {{}}}}]; '
    "the user then gives you their results. {when}"
)
_WHEN = {
    "auto": "Call functions only where they help; otherwise answer in words.",
    "required": "Now call at least one function.",
}
_RESULT = "The result of the function {name}:\n{content}"


def emulated_messages(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], choice: str
) -> list[dict[str, Any]]:
    """The conversation in the roles system, user and assistant. `RequestError` where it is none."""
    turns = [_turn(turn) for turn in read_messages(messages)]
    if not tools:
        return turns
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    when = _WHEN.get(choice, f"Now call the function {choice}.")
    return [{"role": "system", "content": _ABOUT.format(tools=functions, when=when)}, *turns]


def _turn(turn: Message) -> dict[str, Any]:
    if turn.role == "tool":
        return {"role": "user", "content": _RESULT.format(name=turn.name, content=turn.content)}
    content = turn.content
    if turn.tool_calls:
        calls = [{"name": call.name, "arguments": loaded(call.arguments)} for call in turn.tool_calls]
        content = "\n\n".join(filter(None, (content, json.dumps(calls, ensure_ascii=False))))
    return {"role": turn.role, "content": content} | ({"prefix": True} if turn.prefix else {})
