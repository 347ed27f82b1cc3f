"""Files and folders that exist whole or not at all: written under a temporary name, forced to disk, renamed.

Any exception on the way, Ctrl-C and a full disk included, removes what was written. Disk trouble becomes a
`ResourceError`. Where the disk can (Linux, most file systems), a file has no name at all until it is whole, so that
even a killed process leaves none; of a folder it leaves one called `.partial-`.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from coterie.checkpoint.numbers import size_text
from coterie.errors import CheckpointError, ResourceError

__all__ = ["disk_errors", "new_file", "new_folder", "require_disk", "sync_folder"]

_OPEN_FILES = "/proc/self/fd"
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EFBIG: "the file system takes no file that large",
}


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that becomes `path` at the end of the block, replacing what was there.

    Raises `OSError`; the caller knows better what the user asked for, and wraps it in `disk_errors`.
    """
    partial = _partial(path)
    try:
        unnamed = _unnamed(path.parent)
        with open(partial, "xb") if unnamed is None else open(unnamed, "w+b") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
            if unnamed is not None:
                _name(f, partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `path` at the end of the block.

    `path` must not exist (an empty folder may), unless `replace`: then the old folder goes when the new one is whole.
    """
    path = Path(os.path.abspath(path))
    if not replace and (path.is_symlink() or (path.exists() and not _is_empty_folder(path))):
        raise CheckpointError(f"{path} exists already; name a folder that does not, or remove it first")
    partial = _partial(path)
    with disk_errors(path):
        absent = [p for p in path.parents if not p.exists()]
        try:
            partial.mkdir(parents=True)
            yield partial
            sync_folder(partial)
            _swap(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in absent:
                with suppress(OSError):
                    parent.rmdir()
            raise
        sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write into one sentence about `path`."""
    try:
        yield
    except OSError as e:
        reason = _REASONS.get(e.errno or 0, (e.strerror or str(e)).lower())
        raise ResourceError(f"{path} cannot be written: {reason}; nothing was left behind") from e


def require_disk(folder: Path, n_bytes: int) -> None:
    """`ResourceError` where the disk below `folder` (which need not exist yet) has less than `n_bytes` free."""
    place = Path(os.path.abspath(folder))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise ResourceError(
            f"{folder} needs {size_text(n_bytes)} and the disk has {size_text(free)} free; free some or name a folder "
            "on another disk"
        )


def sync_folder(folder: Path) -> None:
    """Force a folder's names to disk, so that a rename survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unnamed(folder: Path) -> int | None:
    """A file in no folder, on the disk of this one; None where the system or the disk has no such thing."""
    flag: int = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir(_OPEN_FILES):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None


def _name(f: BinaryIO, path: Path) -> None:
    """Give a name to a file that has none."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # with a folder's number, since only then a link to the file behind the link is made
        os.link(f"{_OPEN_FILES}/{f.fileno()}", path.name, dst_dir_fd=folder)
    except OSError:
        f.seek(0)
        with open(path, "xb") as named:
            shutil.copyfileobj(f, named, 1 << 20)
            named.flush()
            os.fsync(named.fileno())
    finally:
        os.close(folder)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _swap(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = _partial(path)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
