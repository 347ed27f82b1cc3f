"""Servers that are made by a script of these tests, so that the product needs no hook for them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Scripted", "script"]

_READY = re.compile(r"serving \S+ on (http://\S+)")


@dataclass
class Scripted:
    """A process that serves at `url`; `log` is what it has written to stderr so far."""

    process: "subprocess.Popen[str]"
    url: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, seconds: float = 40) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def script(name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Scripted]:
    """Run a script of this folder until it serves; on leaving it is killed."""
    command = [sys.executable, str(Path(__file__).parent / name), *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=settings)
    server = Scripted(process)
    reader = threading.Thread(target=_collect, args=(server,), daemon=True)
    reader.start()
    try:
        end = time.monotonic() + 60
        while not server.url:
            assert process.poll() is None and time.monotonic() < end, "".join(server.log)[-3000:]
            time.sleep(0.02)
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join(5)


def _collect(server: Scripted) -> None:
    assert server.process.stderr is not None
    with server.process.stderr as stream:
        for line in iter(stream.readline, ""):
            server.log.append(line)
            if not server.url and (found := _READY.search(line)):
                server.url = found[1]
