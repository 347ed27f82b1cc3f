"""Tools that a model may call, and its calls, as they come in: OpenAI's shape, which is Mistral's too.

A tool is `{"type": "function", "function": {"name", "description", "parameters", "strict"}}`; a call is
`{"id", "type": "function", "function": {"name", "arguments"}}`, where the arguments are JSON text (or an object).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import RequestError

__all__ = ["ToolCall", "json_depth", "loaded", "read_calls", "read_tools", "short_id"]

_MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LONGEST_ID = 256
_LARGEST = 256 << 10  # characters of JSON
_DEEPEST = 64
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is JSON text, as it came."""

    id: str
    name: str
    arguments: str


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools in the order and with the keys that models were trained on; `strict` goes. `RequestError`."""
    if not isinstance(tools, list | tuple) or not 1 <= len(tools) <= _MOST_TOOLS:
        raise RequestError(f"tools is {_shown(tools)}, expected a list of 1 to {_MOST_TOOLS} tools")
    read = [_read_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in read]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise RequestError(f"tools[{i}] has the name {name!r}, and so has tools[{names.index(name)}]")
    return read


def read_calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn, each checked; `RequestError`."""
    if calls is None:
        return ()
    if not isinstance(calls, list | tuple) or not 1 <= len(calls) <= _MOST_TOOLS:
        raise RequestError(f"{where} has the tool_calls {_shown(calls)}; expected a list of 1 to {_MOST_TOOLS} calls")
    return tuple(_read_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))


def short_id(call_id: str) -> str:
    """The id that Mistral's forms can write, nine letters and digits: itself, or one made of it."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "".join(_LETTERS[number // 62**i % 62] for i in range(9))


def loaded(text: str) -> Any:
    """The value of JSON text; the text itself where it is none, {} where it is empty. As in mistral-common."""
    if not text:
        return {}
    if json_depth(text) > _DEEPEST:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def json_depth(text: str) -> int:
    """How deep the brackets of JSON text go, those in strings aside: 3 for `[{"a": []}]`."""
    depth = deepest = 0
    for c in _STRING.sub("", text):
        if c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _read_tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise RequestError(f"{where} is {_shown(tool)}, expected an object with a function")
    if tool.get("type", "function") != "function":
        raise RequestError(f"{where} has the type {_shown(tool['type'])}, expected 'function'")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise RequestError(f"{where} has the function {_shown(function)}, expected an object with a name")
    name, about, parameters = function.get("name"), function.get("description"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where} has the name {_shown(name)}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")
    if about is not None and not isinstance(about, str):
        raise RequestError(f"{where} has the description {_shown(about)}, expected text")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"{where} has the parameters {_shown(parameters)}, expected a JSON schema")
    if len(_dumped(parameters, where)) > _LARGEST:
        raise RequestError(f"{where} has parameters of more than {_LARGEST:,} characters of JSON")
    described = {"name": name, "description": about or "", "parameters": dict(parameters or {})}
    return {"type": "function", "function": described}


def _read_call(call: Any, where: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise RequestError(f"{where} is {_shown(call)}, expected an object with an id and a function")
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(call_id, str) or not 0 < len(call_id) <= _LONGEST_ID:
        raise RequestError(f"{where} has the id {_shown(call_id)}, expected a string of 1 to {_LONGEST_ID} characters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where} has the name {_shown(name)}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")
    if isinstance(arguments, Mapping):
        arguments = _dumped(arguments, where)
    if not (arguments is None or isinstance(arguments, str)):
        raise RequestError(f"{where} has arguments of type {type(arguments).__name__}, expected JSON text")
    if arguments is not None and len(arguments) > _LARGEST:
        raise RequestError(f"{where} has arguments of {len(arguments):,} characters; at most {_LARGEST:,} go")
    return ToolCall(call_id, name, arguments or "{}")


def _dumped(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{where} has values that are no JSON, or nested too deeply") from None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
