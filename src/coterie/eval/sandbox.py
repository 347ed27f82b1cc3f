"""Runs code that a model wrote, so that it can harm nothing, and says what became of it.

Each program has a process and a session of its own (`jail.py`) that can open no file but those of Python's library,
start no process, reach no network and signal nobody: Landlock and a filter of system calls (`seccomp.py`) see to that,
and limits of time, memory and files. Namespaces are added where the kernel grants them; only there is a folder to write
in, in memory. Where the first two cannot be had, code is refused rather than run behind less.
"""

import json
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from coterie.errors import ResourceError
from coterie.eval.seccomp import ARCHITECTURES, build_filter

__all__ = ["Limits", "Verdict", "require", "run"]

_LONGEST = 1 << 20  # characters of a program
_ANSWER = 1 << 16  # bytes of an answer
_START = 10.0  # seconds for the interpreter to start on a busy machine
_JAIL = Path(__file__).with_name("jail.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` of the clock; `folder_bytes` is all that the program may write, `file_bytes` of one file."""

    seconds: float = 3.0
    memory_bytes: int = 1 << 29
    file_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    n_open_files: int = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """`status`: "passed" (ran to its end), "failed" (raised `message`), "timeout", "killed" (by a limit or a crash)."""

    status: str
    message: str = ""

    @property
    def is_passed(self) -> bool:
        return self.status == "passed"


def require() -> None:
    """Raise a `ResourceError` in one sentence where this machine cannot isolate code."""
    verdict = run("pass", Limits(seconds=_START))
    if not verdict.is_passed:
        raise ResourceError(
            f"the sandbox for code of the model does not start here ({verdict.status}): nothing was run"
        )


def run(program: str, limits: Limits | None = None) -> Verdict:
    """Run Python source as a module; whatever it does, this process and its files are as before.

    Raises `ResourceError` where the kernel has no walls for it.
    """
    limits = Limits() if limits is None else limits
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        raise ResourceError(
            f"code of the model is run on Linux (x86-64 or ARM64) alone, where it can be isolated, and this is "
            f"{platform.system()} on {platform.machine()}: leave out --run-code"
        )
    if len(program) > _LONGEST:
        return Verdict("failed", f"the program is longer than {_LONGEST} characters")
    with tempfile.TemporaryDirectory(prefix="coterie-code-") as folder:
        return _run(program, limits, folder)


def _run(program: str, limits: Limits, folder: str) -> Verdict:
    token = secrets.token_hex(16)
    environment = {"HOME": folder, "TMPDIR": folder, "PATH": "", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-B", "-c", _JAIL.read_text(encoding="utf-8")], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(_request(program, limits, folder, token)).encode())
            process.stdin.close()
        except BrokenPipeError:
            return Verdict("killed", "it died as it started")
        answer = _read(process.stdout, limits.seconds)
        if answer is None:
            return Verdict("timeout", f"it ran longer than {limits.seconds:g} seconds")
    finally:
        code = _end(process)
    return _verdict(answer, token, code)


def _request(program: str, limits: Limits, folder: str, token: str) -> dict[str, Any]:
    seconds = int(limits.seconds) + 1
    return {
        "program": program,
        "token": token,
        "folder": folder,
        "folder_bytes": limits.folder_bytes,
        "readable": _library(),
        "filter": build_filter(platform.machine()).hex(),
        "limits": {
            "RLIMIT_CPU": (seconds, seconds + 1),
            "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
            "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
            "RLIMIT_NOFILE": (limits.n_open_files, limits.n_open_files),
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_MEMLOCK": (0, 0),
        },
    }


def _library() -> list[str]:
    """What Python itself reads: its library, shared objects, time zones."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")}
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom"]
    return sorted({os.path.realpath(path) for path in (*paths, *system) if path})


def _read(pipe: IO[bytes], seconds: float) -> bytes | None:
    """What comes until the end of the pipe, no more than `_ANSWER` bytes; None when time is over."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    found = b""
    while len(found) <= _ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        part = os.read(pipe.fileno(), _ANSWER)
        if not part:
            break
        found += part
    return found


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Kill the whole session, if it is still there, and gather it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
    return process.wait()


def _verdict(answer: bytes, token: str, code: int) -> Verdict:
    start = answer.rfind(b'{"token": "' + token.encode())
    try:
        found = json.loads(answer[start:]) if start >= 0 else {}
    except ValueError:
        found = {}
    if found.get("status") == "refused":
        raise ResourceError(
            f"code of the model cannot be isolated here ({found['message']}): Linux 5.13 or later with Landlock and "
            "seccomp is needed, so leave out --run-code, or run where they are"
        )
    if not found:
        return Verdict("killed", signal.Signals(-code).name if code < 0 else "it ended without a result")
    return Verdict(str(found["status"]), str(found["message"]))
