"""Mistral's dialect on the same routes: how it is recognised, and what it says differently.

It is spoken by clients whose User-Agent begins with `mistral-client-python/` (the guard looks) and by requests with a
field that only Mistral has. Then a refused value is 422, the usage is on the last chunk, max_tokens may be 0, a call of
a tool is streamed whole, and an answer that the context ended says `model_length`.
"""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

__all__ = ["deprecation_header", "find_dialect"]

_FIELDS = ("random_seed", "safe_prompt", "safe_mode", "prompt_mode", "guardrails")
_SAFE_MODE_GONE = "@1724025600"  # August 2024, when Mistral's client dropped it (RFC 9745: seconds since 1970)


def find_dialect(request: Request, values: Mapping[str, Any]) -> str:
    """The dialect of this request, also for its failures."""
    if any(values.get(name) is not None for name in _FIELDS):
        request.state.dialect = "mistral"
    dialect: str = request.state.dialect
    return dialect


def deprecation_header(values: Mapping[str, Any]) -> dict[str, str]:
    """For `safe_mode`, which is called `safe_prompt` now."""
    if values.get("safe_mode") is None:
        return {}
    return {"deprecation": _SAFE_MODE_GONE, "x-deprecated-fields": "safe_mode; use safe_prompt"}
