"""The kinds of value a recipe's keys hold: each turns what TOML gave into what the run uses, or refuses it.

TOML's whole numbers pass for numbers; its booleans never do, nor do inf and nan.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any

__all__ = [
    "FILES", "FOLDER", "GROUPS", "NUMBER", "NUMBERS", "PATHS", "SEQUENCE", "TEXT", "TOKENIZER", "TWO_NUMBERS", "WHOLE",
    "YES_NO", "Kind", "key",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a key holds: its name in a message, and a function from TOML's value that raises for any other."""

    name: str
    convert: Callable[[Any], Any]


def key(kind: Kind, default: Any = MISSING, *, name: str | None = None) -> Any:
    """A field of a section, under another `name` where the key is a word of Python; no default: it is required."""
    return field(default=default, metadata={"kind": kind} | ({"key": name} if name else {}))


def _text(value: Any) -> str:
    if type(value) is not str or "\0" in value:
        raise TypeError
    return value


def _path(value: Any) -> str:
    if not _text(value):  # or it would be the folder in which the command runs
        raise ValueError
    return str(value)


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise TypeError
    return value


def _yes_no(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _items(convert: Callable[[Any], Any], n: int | None = None) -> Callable[[Any], tuple[Any, ...]]:
    def array(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or (n is not None and len(value) != n):
            raise TypeError
        return tuple(map(convert, value))

    return array


def _phase(value: Any) -> tuple[float, int]:
    start, length = value
    return _number(start), _whole(length)


def _sequence(value: Any) -> int | tuple[tuple[float, int], ...]:
    return _items(_phase)(value) if isinstance(value, list) else _whole(value)


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(map(_path, value)) if isinstance(value, list) else (_path(value),)


def _tokenizer(value: Any) -> str | dict[str, int]:
    if isinstance(value, dict) and value.keys() == {"vocab_size"}:
        return {"vocab_size": _whole(value["vocab_size"])}
    return _path(value)


TEXT, WHOLE, NUMBER = Kind("a string", _text), Kind("a whole number", _whole), Kind("a finite number", _number)
YES_NO = Kind("true or false", _yes_no)
NUMBERS = Kind("an array of numbers", _items(_number))
TWO_NUMBERS = Kind("an array of two numbers", _items(_number, 2))
SEQUENCE = Kind("a whole number or an array of [start, length] pairs", _sequence)
FILES, FOLDER = Kind("an array of paths", _items(_path)), Kind("the path of a folder", _path)
PATHS = Kind("a path or an array of paths", _paths)
GROUPS = Kind("an array of arrays of strings", _items(_items(_text)))
TOKENIZER = Kind("the path of a folder or { vocab_size = N }", _tokenizer)
