"""Ctrl-C and `kill` that wait until what must not be cut in two is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from coterie.train.mesh import Mesh

__all__ = ["interrupt_later", "interrupt_together"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Within it a signal that somebody handles is only noted, and the first one handled at the end.

    In any other thread than the main one none arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[tuple[int, FrameType | None]] = []
    before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            before[signal.Signals(noted[0][0])](*noted[0])


@contextmanager
def interrupt_together(mesh: Mesh) -> Iterator[Callable[[], None]]:
    """Within it Ctrl-C and `kill` are only noted, where there are several ranks.

    All ranks call the function that it gives at the same point, and there it raises `KeyboardInterrupt` on all of them
    if one has come to any: what they then do together (a checkpoint) finds them at the same step.
    """
    if mesh.n_ranks == 1:
        yield lambda: None
        return
    noted: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, lambda number, frame: noted.append(number))

    def interrupted() -> None:
        if mesh.any(bool(noted)):
            raise KeyboardInterrupt

    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
