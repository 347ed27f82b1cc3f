"""A disk that is full from some write on, for tests of what is left then."""

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `ranks`, which the processes that it starts import too

_CALLS = ("fsync", "replace", "rename", "mkdir")


class FullDisk:
    """From operation `n` on, nothing that needs the disk works: writes, fsync, renames, new files and folders."""

    def __init__(self, n: int):
        self.left = n  # below zero once something was refused

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return function(*args, **kwargs)

        return counted

    def opening(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """`open` whose binary files count their writes."""
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.count()
                return super().write(data) or 0

        def opened(path: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if "b" not in mode or "r" in mode:
                return plain(path, mode, buffering, *args, **kwargs)
            self.count()
            raw = Raw(path, mode.replace("b", ""))
            return raw if buffering == 0 else io.BufferedWriter(raw, 64)  # small, so that most writes reach the disk

        return opened


@contextmanager
def _full_from(n: int) -> Iterator[FullDisk]:
    disk = FullDisk(n)
    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, disk.counting(getattr(os, name)))
        opened = disk.opening(builtins.open)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        yield disk


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[FullDisk]]:
    """`with full_disk(n) as disk:` the n-th operation from here, counted from 0, and all after it fail."""
    return _full_from
