"""Servers that are made by a script of these tests, so that the product needs no hook for them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Forking", "Scripted", "script"]

_READY = re.compile(r"serving \S+ on (http://\S+)")


class Scripted:
    """A process of a script of this folder; `log` is what it has written to stderr so far."""

    def __init__(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None):
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / name), *arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})},
        )
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it serves, once it does."""
        return self.found(_READY)

    def found(self, pattern: "re.Pattern[str]", begin: int = 0, seconds: float = 90) -> str:
        """The pattern's group in the first line of the log, from line `begin` on, that has it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.log[begin:]:
                if match := pattern.search(line):
                    return match[1]
            assert self.process.poll() is None, "".join(self.log)[-3000:]
            time.sleep(0.01)
        raise AssertionError(f"{pattern.pattern} did not come: {''.join(self.log)[-3000:]}")

    def stop(self, seconds: float = 40) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in iter(stream.readline, ""):
                self.log.append(line)


@contextmanager
def script(name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Scripted]:
    """Run a script of this folder until it serves; on leaving it is killed."""
    server = Scripted(name, *arguments, environment=environment)
    try:
        assert server.url
        yield server
    finally:
        server.kill()


class Forking:
    """Servers one after the other, each from one line of flags; see forking_server.py."""

    def __init__(self) -> None:
        self._parent = Scripted("forking_server.py")
        self._begin = 0
        self.child = 0

    def start(self, *flags: str) -> str:
        """Its address."""
        self._begin = len(self._parent.log)
        assert self._parent.process.stdin is not None
        self._parent.process.stdin.write(shlex.join(("demo", "--port", "0", *flags)) + "\n")
        self._parent.process.stdin.flush()
        self.child = int(self._parent.found(re.compile(r"^pid (\d+)"), self._begin))
        return self._parent.found(_READY, self._begin)

    def signal(self, number: int) -> None:
        os.kill(self.child, number)

    def exit_code(self, seconds: float) -> int:
        """Of the last one started; AssertionError where it does not end in time."""
        code = int(self._parent.found(re.compile(r"^exit (-?\d+)"), self._begin, seconds))
        self.child = 0
        return code

    @property
    def log(self) -> str:
        return "".join(self._parent.log[self._begin :])

    def close(self) -> None:
        if self.child:
            os.kill(self.child, signal.SIGKILL)
        self._parent.kill()
