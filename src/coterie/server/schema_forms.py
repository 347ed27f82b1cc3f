"""What /openapi.json says of fields that are read later than the others, and of fields beside each other.

JSON Schema can say neither that a pattern or a grammar can be followed, nor what the last of several turns must be. And
rules between fields multiply: programs that make requests of a schema give up at some twenty combinations, so only
those stand there that are easily broken. A request that fits the document may still be refused for the rest.
"""

from typing import Any

from pydantic import WithJsonSchema

__all__ = [
    *("CHOICE", "FORMS", "GRAMMAR", "NOTHING", "RESPONSE_FORMAT", "SCHEMA", "STRUCTURED", "TOOLS", "TOOL_CHOICE"),
    *("at_most_one", "exactly_one", "only_where"),
]

_NULL = {"type": "null"}
_TEXT = {"type": "string", "minLength": 1}
_SCHEMA = {"type": ["object", "boolean"]}
_JSON = {"anyOf": [_SCHEMA, {"type": "string", "contentMediaType": "application/json"}]}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_NAMED = {
    "type": "object",
    "properties": {"name": {"type": ["string", "null"], "minLength": 1, "maxLength": 64}, "schema": _SCHEMA},
    "required": ["schema"],
}
_TOOL_NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_FUNCTION = {
    "type": "object",
    "properties": {
        "name": _TOOL_NAME,
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
    },
    "required": ["name"],
}
_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["function"],
}
TOOLS = {"type": "array", "items": _TOOL, "minItems": 1, "maxItems": 128}
_CHOSEN = {"type": "object", "properties": {"name": _TOOL_NAME}, "required": ["name"]}
_TOOL_CHOICE = {
    "anyOf": [
        {"enum": ["none", "auto", "any", "required"]},
        {
            "type": "object",
            "properties": {"type": {"const": "function"}, "function": _CHOSEN},
            "required": ["type", "function"],
        },
    ]
}
FORMS = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema"),
    *("structured_outputs", "response_format"),
)
RESPONSE_FORMAT = {
    "anyOf": [
        {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {"type": {"const": "json_schema"}, "json_schema": _NAMED},
            "required": ["type", "json_schema"],
        },
    ]
}
STRUCTURED = {
    "type": "object",
    "properties": {"json": _JSON, "regex": _TEXT, "choice": _TEXTS, "grammar": _TEXT, "json_object": {"const": True}},
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
NOTHING, SCHEMA, GRAMMAR, CHOICE, TOOL_CHOICE = (
    WithJsonSchema(schema) for schema in (_NULL, _JSON, _TEXT, _TEXTS, _TOOL_CHOICE)
)  # for Annotated[Any, ...]


def at_most_one(*fields: str) -> dict[str, Any]:
    """Of these."""
    return {"anyOf": [{"properties": _none_but(one, fields)} for one in fields]}


def exactly_one(*fields: str) -> dict[str, Any]:
    """Of these."""
    given = {"not": _NULL}
    return {"anyOf": [{"properties": {**_none_but(one, fields), one: given}, "required": [one]} for one in fields]}


def only_where(switch: str, *fields: str) -> dict[str, Any]:
    """These are given only where `switch` is true."""
    is_on = {"properties": {switch: {"const": True}}, "required": [switch]}
    return {"anyOf": [{"properties": dict.fromkeys(fields, _NULL)}, is_on]}


def _none_but(one: str, fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: _NULL for field in fields if field != one}
