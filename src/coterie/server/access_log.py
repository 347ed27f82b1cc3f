"""One JSON line a request on stderr: never a prompt or an answer, control characters escaped.

Handlers add fields such as `model` to `request.state.log`, a dict.
"""

import json
import sys
import time
from typing import Any

__all__ = ["write_line"]

_LONGEST = 200


def write_line(fields: dict[str, Any]) -> None:
    """`{"at": "2026-01-31T12:00:00Z", ...}`; a log that nobody reads any more is no reason to fail."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    shown = {k: v[:_LONGEST] if isinstance(v, str) else v for k, v in fields.items()}
    try:
        sys.stderr.write(json.dumps({"at": at, **shown}) + "\n")  # ASCII: whatever else there is becomes an escape
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
