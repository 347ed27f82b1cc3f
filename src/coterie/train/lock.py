"""One process at a time works in the folder of a run. The system lets go of the lock when it dies, however it dies.

The lock is a record lock (`fcntl.lockf`): it belongs to the process, so children do not hold it on, and it works on
network file systems too. The file stays, because removing it would let two processes lock two files of one name.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.checkpoint.atomic import disk_errors
from coterie.errors import ResourceError

__all__ = ["hold_run"]


@contextmanager
def hold_run(folder: Path, doing: str = "training") -> Iterator[None]:
    """Within it no other process can hold the folder; `ResourceError` with the process that does where one does."""
    path = folder / "lock"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ResourceError(_taken(folder, doing, os.pread(fd, 32, 0))) from None
        except OSError as e:
            raise ResourceError(f"{path} cannot be locked ({e.strerror}); choose a folder on another disk") from None
        with disk_errors(path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _taken(folder: Path, doing: str, raw: bytes) -> str:
    pid = raw.decode("ascii", errors="replace").strip()
    who = f"process {pid}" if pid.isdecimal() else "another process"
    return f"{who} is {doing} in {folder}; let it end, stop it with Ctrl-C, or choose another folder with --out"
