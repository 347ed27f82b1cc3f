"""The JSON schema of a list of calls, made of the tools' own: each call is the name of a tool and arguments for it.

A tool's schema is put under `$defs`, so the pointers in it (`#/$defs/Place`) are moved to where it now is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import RequestError

__all__ = ["calls_schema"]

_MOST_CALLS = 16
_DEEPEST = 60  # of one tool's schema, within a schema of at most 64
_ID = {"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"}


def calls_schema(tools: Sequence[Mapping[str, Any]], *, many: bool, has_ids: bool = False) -> dict[str, Any]:
    """Of a list of calls of these tools (as `read_tools` gives them), of one unless `many`; `has_ids` allows ids."""
    calls, definitions = [], {}
    for i, tool in enumerate(tools):
        function = tool["function"]
        definitions[f"tool{i}"] = _arguments(function["parameters"], f"#/$defs/tool{i}", function["name"])
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/tool{i}"}}
        calls.append(
            {
                "type": "object",
                "properties": {**properties, "id": _ID} if has_ids else properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    items = {"anyOf": calls}
    most = _MOST_CALLS if many else 1
    return {"type": "array", "minItems": 1, "maxItems": most, "items": items, "$defs": definitions}


def _arguments(parameters: Mapping[str, Any], place: str, name: str) -> dict[str, Any]:
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    moved = _moved(parameters, place, name, 0)
    if moved.get("type", "object") != "object":
        raise RequestError(f"the tool {name!r} has parameters that are no object, expected the type 'object'")
    return {"type": "object", **{k: v for k, v in moved.items() if k not in ("$schema", "$id")}}


def _moved(value: Any, place: str, name: str, depth: int) -> Any:
    """The same with its pointers moved."""
    if depth > _DEEPEST:
        raise RequestError(f"the tool {name!r} has parameters nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        moved = {k: _moved(v, place, name, depth + 1) for k, v in value.items()}
        pointer = value.get("$ref")
        if isinstance(pointer, str) and pointer.startswith("#"):
            moved["$ref"] = place + pointer[1:]
        return moved
    if isinstance(value, list | tuple):
        return [_moved(v, place, name, depth + 1) for v in value]
    return value
