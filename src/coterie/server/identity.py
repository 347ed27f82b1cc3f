"""`system_fingerprint`: the same digits where the same seed gives the same text, so it names weights, build and device.

The digest of the weights is taken once for each model in memory, in a thread: for a large one it takes seconds.
"""

import asyncio
import hashlib
from weakref import WeakKeyDictionary

from coterie import __version__
from coterie.engine.fingerprint import fingerprint
from coterie.model import Transformer
from coterie.server.models import Served

__all__ = ["system_fingerprint"]

_known: "WeakKeyDictionary[Transformer, str]" = WeakKeyDictionary()


async def system_fingerprint(served: Served) -> str:
    """`fp_` and 16 hexadecimal digits."""
    model = served.lm.model
    if model not in _known:
        _known[model] = await asyncio.to_thread(_digest, model, served.settings.cache_type)
    return _known[model]


def _digest(model: Transformer, cache_type: str) -> str:
    told = f"{fingerprint(model)} {__version__} {model.device} {model.cache_dtype} {cache_type}"
    return "fp_" + hashlib.sha256(told.encode()).hexdigest()[:16]
