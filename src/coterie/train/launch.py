"""`--ranks N`: the same command in N processes of this machine, which meet in a file and talk over its own loopback.

Rank 0 speaks for all. What another rank says is kept, and shown if that rank is the first to fail; then all end. A rank
that only lost its neighbour ends with `LOST` and says nothing. The ranks are in sessions of their own, so that Ctrl-C
reaches them once, from here; their standard input is a pipe that closes when this process dies, and they die with it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from coterie.train.interrupt import interrupt_later
from coterie.train.mesh import RANK, RANKS, STORE

__all__ = ["LOST", "as_rank", "is_rank", "launch"]

LOST = 75  # exit code of a rank that ends because another one is gone
_GRACE = 10.0  # seconds for the others to end by themselves
_SHOWN = 4000  # bytes of a failed rank's last words


class _Rank(NamedTuple):
    number: int
    process: "subprocess.Popen[bytes]"
    said: BinaryIO


def is_rank(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by `launch`."""
    return RANK in env


def launch(n_ranks: int, command: Sequence[str]) -> int:
    """Run `command` on all ranks to the end and return the exit code of the first that failed, or 0.

    Ctrl-C is passed on, and the ranks' own end awaited; a second one ends them at once.
    """
    with tempfile.TemporaryDirectory(prefix="coterie-ranks-") as folder:
        ranks: list[_Rank] = []
        try:
            is_interrupted = _start_all(ranks, n_ranks, command, Path(folder))
            return _watch(ranks, is_interrupted)
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.wait()
                rank.said.close()
                if rank.process.stdin:
                    rank.process.stdin.close()


def _start_all(ranks: list[_Rank], n_ranks: int, command: Sequence[str], folder: Path) -> bool:
    """Whether Ctrl-C came meanwhile: no rank is half started, and so lost, because of it."""
    try:
        with interrupt_later():
            for number in range(n_ranks):
                ranks.append(_start(number, n_ranks, command, folder))
    except (KeyboardInterrupt, SystemExit):
        return True
    return False


def _start(number: int, n_ranks: int, command: Sequence[str], folder: Path) -> _Rank:
    said = (folder / f"rank-{number}.txt").open("w+b")
    threads = str(max(1, len(os.sched_getaffinity(0)) // n_ranks if hasattr(os, "sched_getaffinity") else 1))
    own = {RANK: str(number), RANKS: str(n_ranks), STORE: str(folder / "store")}
    env = {"OMP_NUM_THREADS": threads} | os.environ | own
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=None if number == 0 else subprocess.DEVNULL,
        stderr=None if number == 0 else said,
        start_new_session=True,
    )
    return _Rank(number, process, said)


def _watch(ranks: Sequence[_Rank], is_interrupted: bool) -> int:
    """Until all have ended, or one has failed and the others had their time."""
    deadline = float("inf")
    if is_interrupted:
        _interrupt(ranks)
    while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < deadline:
        try:
            time.sleep(0.05)
        except (KeyboardInterrupt, SystemExit):
            if is_interrupted:
                raise
            is_interrupted = True
            _interrupt(ranks)
        if deadline == float("inf") and any(rank.process.poll() for rank in ranks):
            deadline = time.monotonic() + _GRACE
    if is_interrupted:
        return 128 + signal.SIGINT
    failed = [rank for rank in ranks if rank.process.poll()]
    guilty = [rank for rank in failed if rank.process.returncode != LOST] or failed
    return _last_words(guilty[0]) if guilty else 0


def _interrupt(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        rank.process.send_signal(signal.SIGINT)


def _last_words(rank: _Rank) -> int:
    """Show why a rank failed, where it could not itself; the exit code for it."""
    code = rank.process.returncode
    if code < 0:
        name = signal.Signals(-code).name
        _say(
            f"rank {rank.number} was ended by {name}, perhaps for want of memory; the same command goes on from the "
            "last checkpoint"
        )
        return 1
    if code == LOST:
        _say(f"rank {rank.number} lost its connection to the others; the same command goes on from the last checkpoint")
        return 1
    if rank.number > 0:
        rank.said.seek(0, os.SEEK_END)
        rank.said.seek(max(0, rank.said.tell() - _SHOWN))
        lines = rank.said.read().decode(errors="replace").splitlines()
        last = [line for line in lines if line.startswith("coterie: ")][-1:] or lines[-20:]
        _say(f"rank {rank.number}: " + "\n".join(last).removeprefix("coterie: "))
    return code


def _say(sentence: str) -> None:
    print(f"coterie: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def as_rank(env: Mapping[str, str] = os.environ) -> Iterator[None]:
    """What a rank does: end when the process that started it has gone, and in silence when another rank has."""
    if not is_rank(env):
        yield
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        yield
    except RuntimeError as e:
        if not _is_lost_peer(e):
            raise
        raise SystemExit(LOST) from None


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(LOST)


def _is_lost_peer(error: RuntimeError) -> bool:
    """gloo's errors are RuntimeErrors, some of them torch's DistError, that name its files or a closed connection."""
    text = str(error).lower()
    return any(sign in text for sign in ("gloo", "connection closed", "connection reset", "broken pipe"))
