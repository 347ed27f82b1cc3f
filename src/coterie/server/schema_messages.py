"""`messages` as they come in: every shape that is none is refused with the turn and the part it is about.

Text parts are joined by a blank line; an image, a sound or a file is refused, and nothing is ever fetched. What comes
out are turns of role and content (text), with `prefix`, `tool_calls` and `tool_call_id` where they were.
"""

from collections.abc import Callable
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from coterie.server.failures import ApiError, refused
from coterie.server.schema_fields import shown

__all__ = ["CALLING", "MESSAGES", "MOST_MESSAGES", "SPOKEN", "read_messages", "unknown_keys"]

MOST_MESSAGES = 4096
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXTS = ("text", "input_text", "output_text")
_KNOWN = {"role", "content", "prefix", "tool_calls", "tool_call_id", "name", "refusal", "annotations"}
_PART = {
    "type": "object",
    "properties": {"type": {"enum": list(_TEXTS)}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]}
_SHORT = {"type": ["string", "null"], "maxLength": 128}
_CALLED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "arguments": {"type": ["string", "object", "null"]},
    },
    "required": ["name"],
}
_CALL = {
    "type": "object",
    "properties": {"id": {"type": "string", "minLength": 1, "maxLength": 128}, "function": _CALLED},
    "required": ["id", "function"],
}
_CALLS = {"type": "array", "items": _CALL, "minItems": 1, "maxItems": 128}


def _turn_of(*roles: str, needs: tuple[str, ...] = ("content",), **more: dict[str, Any]) -> dict[str, Any]:
    """What a turn of these roles is; what is not among `more` is left out, or null."""
    not_given = {"prefix": {"enum": [False, None]}, "tool_calls": {"type": "null"}, "tool_call_id": {"type": "null"}}
    properties = {"role": {"enum": list(roles)}, "content": _CONTENT, "name": _SHORT, **not_given, **more}
    return {"type": "object", "properties": properties, "required": ["role", *needs]}


SPOKEN = (_turn_of("system", "developer", "user"), _turn_of("assistant", prefix={"type": ["boolean", "null"]}))
CALLING = (
    _turn_of("assistant", needs=("tool_calls",), tool_calls=_CALLS, content={"anyOf": [_CONTENT, {"type": "null"}]}),
    _turn_of("tool", needs=("content", "tool_call_id"), tool_call_id={"type": "string", "maxLength": 128}),
)
_SCHEMA = {"type": "array", "minItems": 1, "maxItems": MOST_MESSAGES, "items": {"anyOf": [*SPOKEN, *CALLING]}}


class _Messages:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(read_messages)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(_SCHEMA)


MESSAGES = _Messages()  # for Annotated[list[dict[str, Any]], MESSAGES]


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The turns, or `ApiError` (which pydantic lets through)."""
    if type(value) is not list:
        raise refused("messages", f"messages is {shown(value)}, expected a list of turns with a role and a content")
    if not 1 <= len(value) <= MOST_MESSAGES:
        raise refused("messages", f"messages is a list of {len(value)}, expected 1 to {MOST_MESSAGES} turns")
    return [_turn(turn, i) for i, turn in enumerate(value)]


def _turn(turn: Any, i: int) -> dict[str, Any]:
    if type(turn) is not dict:
        raise refused(f"messages.{i}", f"messages[{i}] is {shown(turn)}, expected an object with a role and a content")
    role = turn.get("role")
    if type(role) is not str or role not in _ROLES:
        raise _wrong(i, "role", role, "system, user, assistant or tool")
    read: dict[str, Any] = {"role": _ROLES[role]}
    calls = turn.get("tool_calls")
    if calls is not None:
        read["tool_calls"] = _checked(i, "tool_calls", calls, _is_calls, "a list of at most 128 calls")
    if turn.get("prefix") is not None:
        read["prefix"] = _checked(i, "prefix", turn["prefix"], lambda v: type(v) is bool, "true or false")
    for name in ("tool_call_id", "name"):
        if turn.get(name) is not None:
            read[name] = _checked(
                i, name, turn[name], lambda v: type(v) is str and len(v) <= 128, "text of at most 128 characters"
            )
    read["content"] = _content(turn.get("content"), i, may_be_empty=role == "assistant" and bool(calls))
    return read


def _content(content: Any, i: int, *, may_be_empty: bool) -> str:
    if content is None and may_be_empty:
        return ""
    if type(content) is str:
        return content
    if type(content) is not list or not content:
        raise _wrong(i, "content", content, "text, or a list of text parts")
    texts = [_part(part, i, k) for k, part in enumerate(content)]
    return "\n\n".join(text for text in texts if text)  # as mistral-common does


def _part(part: Any, i: int, k: int) -> str:
    place, name = f"messages.{i}.content.{k}", f"messages[{i}].content[{k}]"
    if type(part) is not dict or type(part.get("type")) is not str:
        raise refused(place, f"{name} is {shown(part)}, expected an object with a type")
    if part["type"] not in _TEXTS:
        raise refused(
            place,
            f"{name} is of the type {shown(part['type'])}, expected 'text': this model reads text only",
            code="unsupported_content",
        )
    if type(part.get("text")) is not str:
        raise refused(f"{place}.text", f"{name}.text is {shown(part.get('text'))}, expected text")
    text: str = part["text"]
    return text


def _is_calls(value: Any) -> bool:
    return type(value) is list and len(value) <= 128 and all(type(call) is dict for call in value)


def _checked(i: int, name: str, value: Any, check: Callable[[Any], bool], expected: str) -> Any:
    if not check(value):
        raise _wrong(i, name, value, expected)
    return value


def _wrong(i: int, name: str, value: Any, expected: str) -> ApiError:
    return refused(f"messages.{i}.{name}", f"messages[{i}].{name} is {shown(value)}, expected {expected}")


def unknown_keys(value: Any) -> list[str]:
    """Keys of turns that nothing reads, as `messages.key`; null is as if the key were not there."""
    turns = [turn for turn in value if type(turn) is dict] if type(value) is list else []
    unknown = [key for turn in turns for key in turn if key not in _KNOWN and turn[key] is not None]
    return list(dict.fromkeys(f"messages.{key}" for key in unknown))
