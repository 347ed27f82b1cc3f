"""A time limit for work that cannot be interrupted: it runs in a thread that is left alone when its time is over.

The thread is a daemon, so a program that ends does not wait for it. At most two run at a time; who waits for its turn
uses up its own time.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from coterie.errors import RequestError

__all__ = ["within"]

_T = TypeVar("_T")
_AT_A_TIME = threading.BoundedSemaphore(2)


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """What `work` returns or raises, or `RequestError` after `seconds`."""
    ends = time.monotonic() + seconds
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            _AT_A_TIME.release()

    if _AT_A_TIME.acquire(timeout=seconds):
        thread = threading.Thread(target=run, name="compile a grammar", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the program is ending
            _AT_A_TIME.release()
            raise
        thread.join(max(0.0, ends - time.monotonic()))
    if errors:
        raise errors[0]
    if not results:
        raise RequestError(f"the grammar was not compiled within {seconds:g} s: make it smaller")
    return results[0]
