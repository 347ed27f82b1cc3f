"""Ctrl-C while modules are being imported ends the process at once.

Elsewhere Ctrl-C is the usual `KeyboardInterrupt`. In the midst of an import that exception is not safe to raise: torch
starts up in C++, which loses it (the program goes on), turns it into another error, or aborts the process.
"""

import os
import signal
import threading
from types import FrameType

__all__ = ["handle_interrupts"]

_IMPORT = "<frozen importlib."  # the file name of the interpreter's own import code


def handle_interrupts() -> None:
    """Take over Python's own handler of Ctrl-C; one that somebody else has set stays."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORT):
            os.write(2, b"coterie: interrupted\n")  # print may be what was interrupted
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt
