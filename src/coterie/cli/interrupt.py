"""Ctrl-C, `kill` and a closed terminal end the program through every `finally`, so that no half file stays.

Ctrl-C is the usual `KeyboardInterrupt`, the other two are a `SystemExit`. In the midst of an import neither is safe to
raise: torch starts up in C++, which loses it (the program goes on), turns it into another error, or aborts the process.
There the process ends at once; nothing imports while it holds a half-written file.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["handle_interrupts", "unwinding"]

_IMPORT = "<frozen importlib."  # the file name of the interpreter's own import code


def handle_interrupts() -> None:
    """Take over Python's own handler of Ctrl-C; one that somebody else has set stays."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


@contextmanager
def unwinding() -> Iterator[None]:
    """Within it all three signals unwind; what somebody else handles, or has told us to ignore, stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handle_interrupts()
    for s in (signal.SIGTERM, signal.SIGHUP):
        if before[s] == signal.SIG_DFL:
            signal.signal(s, _stop)
    try:
        yield
    finally:
        for s, handler in before.items():
            if handler is not None:  # None: set by somebody's C code
                signal.signal(s, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        os.write(2, b"coterie: interrupted\n")  # print may be what was interrupted
        os._exit(130)
    raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        os._exit(128 + number)
    raise SystemExit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORT):
            return True
        frame = frame.f_back
    return False
