"""`NAME=VALUE` for the sampling fields that have no flag of their own, and how many tokens a second went by."""

import json
from typing import Any

from coterie.errors import RequestError

__all__ = ["parse_setting", "parse_value", "speed"]


def parse_setting(text: str) -> tuple[str, Any]:
    """`top_p=0.9` -> ("top_p", 0.9). Raises `RequestError` where there is no `=`; the name is checked later."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise RequestError(f"{text!r} is not a setting, expected NAME=VALUE, for example top_p=0.9")
    return name.strip().replace("-", "_"), parse_value(value)


def parse_value(text: str) -> Any:
    """A number, true, false, null, list or table as JSON has it; anything else is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def speed(n_prompt: int, n_new: int, first_seconds: float, rest_seconds: float) -> str:
    """`12 prompt tokens read in 0.10 s, 40 written at 95.0 tokens/s`: the first new token counts as the prompt's."""
    text = f"{n_prompt} prompt tokens read in {first_seconds:.2f} s, {n_new} written"
    return f"{text} at {(n_new - 1) / rest_seconds:.1f} tokens/s" if n_new > 1 and rest_seconds > 0 else text
