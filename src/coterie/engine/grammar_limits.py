"""How large a schema or grammar may be, counted before anything is done with it; and what to say of one that fails.

Depth is counted without recursion and before `json.dumps`, which recurses. The counts were chosen by what llguidance
does with hostile input: properties cost it quadratic time, and forced text costs time at every step.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import RequestError
from coterie.tokenizer.tool_calls import json_depth

__all__ = ["KINDS", "check_choices", "check_repeats", "check_text", "schema_text", "sentence"]

KINDS = ("json_schema", "json_object", "json_or_text", "regex", "choice", "lark", "gbnf", "grammar")
_LARGEST_SCHEMA = 256 << 10  # bytes
_LARGEST_TEXT = 64 << 10  # characters of a grammar or regular expression
_DEEPEST = 64
_MOST_VALUES = 200_000
_MOST_PROPERTIES = 1000
_MOST_CHOICES = 10_000
_LONGEST_CONSTANT = 10_000  # characters
_MOST_REPEATS = 100_000
_NAMES = ("properties", "patternProperties")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_PLACE = re.compile(r"^\d*\(?\d+\)?: |^at \d+\(\d+\): ")


def check_text(text: object, what: str, limit: int = _LARGEST_TEXT) -> str:
    """`text`, which is a str that UTF-8 can hold, not empty and no longer than `limit`."""
    if not isinstance(text, str):
        raise RequestError(f"the {what} is of type {type(text).__name__}, expected text")
    if not text:
        raise RequestError(f"the {what} is empty, expected at least one character")
    if len(text) > limit:
        raise RequestError(f"the {what} has {len(text):,} characters, and at most {limit:,} are allowed")
    if _has_surrogate(text):
        raise RequestError(f"the {what} is not valid Unicode: it has half of a surrogate pair")
    return text


def schema_text(schema: object) -> str:
    """A schema (an object, true or false, or JSON text of one) as compact JSON, every limit checked."""
    if isinstance(schema, str):
        schema = _parsed(check_text(schema, "JSON schema", _LARGEST_SCHEMA))
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"the JSON schema is of type {type(schema).__name__}, expected an object")
    _walk(schema)
    try:
        text = json.dumps(schema, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise RequestError(f"the JSON schema is no JSON: {sentence(str(error))}") from None
    if len(text) > _LARGEST_SCHEMA:
        raise RequestError(f"the JSON schema has {len(text):,} bytes, and at most {_LARGEST_SCHEMA:,} are allowed")
    return text


def check_choices(choices: object) -> list[str]:
    """A list of texts to choose from."""
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise RequestError(f"the choice is of type {type(choices).__name__}, expected a list of texts")
    if not 1 <= len(choices) <= _MOST_CHOICES:
        raise RequestError(f"the choice has {len(choices):,} texts, expected between 1 and {_MOST_CHOICES:,}")
    texts = [check_text(choice, f"text {i} of the choice", _LONGEST_CONSTANT) for i, choice in enumerate(choices)]
    if sum(map(len, texts)) > _LARGEST_SCHEMA:
        raise RequestError(f"the choice has more than {_LARGEST_SCHEMA:,} characters in all")
    return list(dict.fromkeys(texts))


def check_repeats(pattern: str, what: str) -> str:
    """A regular expression or grammar whose counted repeats, multiplied where they nest, stay in bounds.

    `(a{3}b{2,}){4}` repeats `a` 12 times. One walk; a count in a class or after a backslash counts too, which only
    ever refuses more.
    """
    inner = [1]  # for each open bracket the largest product within it
    last = 1  # that of the item just before
    at = 0
    while at < len(pattern):
        c = pattern[at]
        if c == "(":
            inner.append(1)
            last = 1
        elif c == ")" and len(inner) > 1:
            last = inner.pop()
            inner[-1] = max(inner[-1], last)
        elif c == "{" and (count := _count(pattern, at)) is not None:
            last *= count
            inner[-1] = max(inner[-1], last)
            at = pattern.index("}", at)
        elif not c.isspace() and c not in "*+?":
            last = 1
        if inner[-1] > _MOST_REPEATS:
            raise RequestError(f"the {what} repeats a part more than {_MOST_REPEATS:,} times")
        at += 1
    return pattern


def sentence(message: str) -> str:
    """The gist of an error of llguidance's in one short line: neither the parser's state nor the user's text."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines or lines[0].startswith("panic"):
        return "it is not supported"
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    line = _CONTROL.sub(" ", _PLACE.sub("", line)).split("; ")[0].split(" (at ")[0].split(" and retrieving ")[0]
    return line[:160].rstrip(" :.")


def _count(pattern: str, at: int) -> int | None:
    """The number in `{3}`, the larger one in `{3,5}`; None for another brace."""
    numbers = pattern[at + 1 : at + 48].split("}", 1)
    if len(numbers) < 2:
        return None
    parts = [part.strip() for part in numbers[0].split(",")]
    if len(parts) > 2 or not all(part == "" or (part.isascii() and part.isdigit()) for part in parts):
        return None
    return max(1, *(int(part or 0) for part in parts)) if any(parts) else None


def _parsed(text: str) -> Any:
    if json_depth(text) > _DEEPEST:
        raise RequestError(f"the JSON schema is nested more than {_DEEPEST} deep")
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"the JSON schema is no JSON: {sentence(str(error))}") from None


def _walk(schema: Any) -> None:
    """Depth, counts and constants of a schema, level by level, so that nothing recurses."""
    level, n_values, n_properties = [schema], 0, 0
    for depth in range(_DEEPEST + 2):
        if not level:
            return
        if depth > _DEEPEST:
            raise RequestError(f"the JSON schema is nested more than {_DEEPEST} deep")
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                n_properties += sum(len(v) for k, v in value.items() if k in _NAMES and isinstance(v, Mapping))
                _check_words(value)
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, str):
                _check_constant(value)
        n_values += len(below)
        if n_properties > _MOST_PROPERTIES:
            raise RequestError(f"the JSON schema has {n_properties:,} properties; at most {_MOST_PROPERTIES:,} go")
        if n_values > _MOST_VALUES:
            raise RequestError(f"the JSON schema has more than {_MOST_VALUES:,} values")
        level = below


def _check_words(schema: Mapping[Any, Any]) -> None:
    """The keywords whose values cost more than their size."""
    choices = schema.get("enum")
    if isinstance(choices, list | tuple) and len(choices) > _MOST_CHOICES:
        raise RequestError(f"an enum of the JSON schema has {len(choices):,} values; at most {_MOST_CHOICES:,} go")
    if isinstance(pattern := schema.get("pattern"), str):
        check_repeats(pattern, "pattern in the JSON schema")
    if "x-guidance" in schema:
        raise RequestError("the JSON schema has the keyword 'x-guidance', which is not allowed here")


def _check_constant(text: str) -> None:
    if len(text) > _LONGEST_CONSTANT:
        raise RequestError(f"a text in the JSON schema has {len(text):,} characters; at most {_LONGEST_CONSTANT:,} go")
    if _has_surrogate(text):
        raise RequestError("a text in the JSON schema is not valid Unicode: it has half of a surrogate pair")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
