"""Everything that can go wrong through no fault of ours, as a tree of types.

    CoterieError                 catch this one to catch them all
    ├── ConfigError              config.json or params.json: a key, a type, a bound
    ├── CheckpointError          weight files: truncated, overlapping, missing, misshapen, NaN
    │   └── UnsafeFileError      a pickle or anything else that would run code when read
    ├── TokenizerError           no tokenizer, one of an unknown kind, text it cannot take
    ├── RequestError             a generation parameter or prompt outside its bounds
    │   └── ContextError         prompt plus new tokens beyond the context
    ├── RecipeError              a training recipe: unknown section, key, value
    ├── DataError                training or evaluation text that cannot be read
    ├── ResourceError            memory or disk that is not there
    └── DownloadError            the hub: gated, missing, unreachable

Each message is one sentence: what, where, what was expected, what to do. The command line prints it
and exits with 2. A broken invariant of our own is an `AssertionError` and exits with 1.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextError",
    "CoterieError",
    "DataError",
    "DownloadError",
    "RecipeError",
    "RequestError",
    "ResourceError",
    "TokenizerError",
    "UnsafeFileError",
    "nearest",
]


class CoterieError(Exception):
    """The root of the tree above."""


class ConfigError(CoterieError, ValueError):
    """A model configuration that is wrong or not supported."""


class CheckpointError(CoterieError, ValueError):
    """A weight file or folder that cannot be trusted or does not fit its configuration."""


class UnsafeFileError(CheckpointError):
    """A file whose reading could run code (pickles); it is never opened."""


class TokenizerError(CoterieError, ValueError):
    """A tokenizer that is missing or unknown, or text that it cannot take."""


class RequestError(CoterieError, ValueError):
    """A generation parameter or prompt outside its bounds."""


class ContextError(RequestError):
    """Prompt plus new tokens do not fit the context."""


class RecipeError(CoterieError, ValueError):
    """A training recipe with an unknown section or key, or an impossible value."""


class DataError(CoterieError, ValueError):
    """Training or evaluation data that cannot be read."""


class ResourceError(CoterieError, RuntimeError):
    """Memory or disk that the work needs and the machine does not have."""


class DownloadError(CoterieError, RuntimeError):
    """A download that failed; what arrived is kept for the next try."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'rope_theta'?"` for a near miss, else the empty string."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
