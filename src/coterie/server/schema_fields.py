"""What a field of a request may be: strict leaves for pydantic models, each with its sentence and its JSON schema.

Strict means: a bool is no number, a number in quotes is no number, and a list is measured before anything is copied.
A leaf says what was expected; `schema.read` puts the field's name and its value in front.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

__all__ = ["Leaf", "flag", "items", "number", "one_of", "opaque", "shown", "table", "text", "texts", "whole"]

_LONGEST_SHOWN = 60


class Leaf:
    """For `Annotated[type, Leaf(...)]`: `check(value)` says whether a value of JSON will do.

    `culprit(value)` finds the part that is wrong in one that has parts: its key, itself, and what was expected there.
    """

    def __init__(
        self,
        expected: str,
        check: Callable[[Any], bool],
        schema: dict[str, Any],
        culprit: Callable[[Any], tuple[int | str, Any, str] | None] = lambda value: None,
    ):
        self.expected, self.fits, self.schema, self._culprit = expected, check, schema, culprit

    def read(self, value: Any) -> Any:
        if self.fits(value):
            return value
        if (found := self._culprit(value)) is None:
            raise PydanticCustomError("value_error", "{expected}", {"expected": self.expected})
        key, part, expected = found
        raise PydanticCustomError("value_error", "{expected}", {"expected": expected, "key": key, "part": part})

    def titled(self, title: str) -> "Leaf":
        """The same, which is to be found in a schema by this title."""
        return Leaf(self.expected, self.fits, {**self.schema, "title": title}, self._culprit)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


def whole(low: int, high: int) -> Leaf:
    return Leaf(
        f"a whole number between {low} and {high}",
        lambda v: type(v) is int and low <= v <= high,
        {"type": "integer", "minimum": low, "maximum": high},
    )


def number(low: float, high: float, *, above: bool = False) -> Leaf:
    """Between the two; `above`: the low end is left out."""
    between = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
    return Leaf(
        f"a number {between}",
        lambda v: type(v) in (int, float) and (low < v if above else low <= v) and v <= high,
        {"type": "number", ("exclusiveMinimum" if above else "minimum"): low, "maximum": high},
    )


def flag() -> Leaf:
    return Leaf("true or false", lambda v: type(v) is bool, {"type": "boolean"})


def text(longest: int, shortest: int = 0) -> Leaf:
    least = "" if shortest == 0 else f"at least {shortest} and "
    return Leaf(
        f"text of {least}at most {longest} characters",
        lambda v: type(v) is str and shortest <= len(v) <= longest,
        {"type": "string", "minLength": shortest, "maxLength": longest},
    )


def one_of(*values: Any) -> Leaf:
    listed = " or ".join(json.dumps(v) for v in values)
    return Leaf(listed, lambda v: any(v == x and type(v) is type(x) for x in values), {"enum": list(values)})


def items(each: Leaf, least: int, most: int) -> Leaf:
    """A list of such leaves."""
    return Leaf(
        f"a list of {least} to {most}, each {each.expected}",
        lambda v: type(v) is list and least <= len(v) <= most and all(each.fits(x) for x in v),
        {"type": "array", "items": each.schema, "minItems": least, "maxItems": most},
        lambda v: _wrong_item(v, each) if type(v) is list and least <= len(v) <= most else None,
    )


def _wrong_item(values: list[Any], each: Leaf) -> tuple[int, Any, str] | None:
    return next(((i, x, each.expected) for i, x in enumerate(values) if not each.fits(x)), None)


def texts(most: int, longest: int) -> Leaf:
    """One text or a list of them, none empty."""
    each, many = text(longest, 1), items(text(longest, 1), 0, most)
    return Leaf(
        f"text, or a list of at most {most} texts, each of 1 to {longest} characters",
        lambda v: each.fits(v) or many.fits(v),
        {"anyOf": [each.schema, many.schema]},
        many._culprit,
    )


def table(most: int, expected: str, check: Callable[[str, Any], bool], schema: dict[str, Any]) -> Leaf:
    """An object of at most so many entries."""

    def wrong_entry(value: Any) -> tuple[str, Any, str] | None:
        if type(value) is not dict or len(value) > most:
            return None
        return next(((k[:80], x, f"an entry {expected}") for k, x in value.items() if not check(k, x)), None)

    return Leaf(
        f"an object of at most {most} entries, {expected}",
        lambda v: type(v) is dict and len(v) <= most and all(check(k, x) for k, x in v.items()),
        {"type": "object", "maxProperties": most, **schema},
        wrong_entry,
    )


def opaque(kind: type, expected: str, schema: dict[str, Any]) -> Leaf:
    """Something of this type that is looked at later."""
    return Leaf(expected, lambda v: type(v) is kind, schema)


def shown(value: Any) -> str:
    """A value as a message shows it: short, whatever was sent."""
    if isinstance(value, list | dict):
        empty, what = ("[]", "a list") if isinstance(value, list) else ("{}", "an object")
        return f"{what} of {len(value)}" if value else empty
    if isinstance(value, str):
        value = value[: _LONGEST_SHOWN + 1]
    as_json = json.dumps(value, ensure_ascii=False)
    return as_json if len(as_json) <= _LONGEST_SHOWN else as_json[: _LONGEST_SHOWN - 3] + "..."
