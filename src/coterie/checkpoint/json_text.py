"""JSON from strangers: bounded in size, one object, no key twice, no NaN, no number that Python would choke on.

Python's own parser takes the last of two equal keys and reads NaN; two readers of such a file may see two models.
"""

import json
from pathlib import Path
from typing import Any

from coterie.errors import CoterieError

__all__ = ["parse_object", "read_object"]

_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a truth value"}
_LARGEST_FILE = 64 << 20  # the index of 8x22B is 0.2 MB


def read_object(path: Path, error: type[CoterieError]) -> dict[str, Any]:
    """The JSON object in a file, or `error` with one sentence that says what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise error(f"{path} has {size:,} bytes, expected at most {_LARGEST_FILE:,} of JSON")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except OSError as e:
        raise error(f"{path} cannot be read: {e.strerror}") from None
    return parse_object(raw, str(path), error)


def parse_object(raw: bytes, where: str, error: type[CoterieError]) -> dict[str, Any]:
    """The JSON object in `raw`; `where` names it in messages."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise error(f"{where} has the key {key!r} twice; keep one")
            seen[key] = value
        return seen

    def refuse(constant: str) -> Any:
        raise error(f"{where} contains {constant}, which is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except UnicodeDecodeError as e:
        raise error(f"{where} is not UTF-8 text (byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise error(f"{where} is not valid JSON: {e.msg} at line {e.lineno}, column {e.colno}") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply to be a model's JSON") from None
    except CoterieError:
        raise
    except ValueError:  # a whole number of more than 4300 digits
        raise error(f"{where} contains a number too long to read") from None
    if not isinstance(value, dict):
        raise error(f"{where} holds {_KINDS.get(type(value), 'null')}, expected a JSON object")
    return value
