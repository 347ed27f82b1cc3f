"""Programs as bad as they come: each ends, and the machine is as before."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from coterie.errors import ResourceError
from coterie.eval import sandbox
from coterie.eval.sandbox import Limits, run

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="code is isolated on Linux alone")
QUICK = Limits(seconds=5.0)
DENYING = """
import ctypes, platform, struct
libc = ctypes.CDLL(None)
numbers = {names}
numbers = [number[platform.machine() == "aarch64"] for number in numbers]
steps = [(0x20, 0, 0, 0)]
for number in numbers:
    steps += [(0x15, 0, 1, number), (6, 0, 0, 0x00050001)]
steps.append((6, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
from coterie.eval.sandbox import run
"""  # a filter like that of a container
INHERITED = """
import os
assert "COTERIE_SECRET" not in os.environ
for n in range(4, 64):
    try:
        os.fstat(n)
    except OSError:
        continue
    raise SystemExit(n)
"""
UNSHARE, LANDLOCK = (272, 97), (444, 444)

PASSING = {
    "nothing": "",
    "the library": "import decimal, datetime, heapq, re, math, typing, random, hashlib, zoneinfo, statistics, sqlite3",
    "threads": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
    "dataclasses": "from __future__ import annotations\nimport dataclasses\n"
    "@dataclasses.dataclass\nclass A:\n    x: int\nassert A(1).x == 1",
    "a fixed order of sets": "assert hash('a') == hash('a')",
    "no main": "assert __name__ != '__main__'",
}
FAILING = {
    "assert 1 == 2, 'no'": "AssertionError: no",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "input()": "EOFError",
    "def f(): f()\nf()": "RecursionError",
    "raise ValueError('\\ud800')": "ValueError: \\ud800",
    "def f(:": "SyntaxError",
    "x = bytearray(1 << 31)": "MemoryError",
    "import os\nwhile True: os.fork()": "PermissionError",
    "import subprocess; subprocess.run(['true'])": "PermissionError",
    "import os; os.execv('/bin/true', ['true'])": "PermissionError",
    "import multiprocessing as m; m.Process(target=print).start()": "PermissionError",
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()": "RuntimeError",
    "import socket; socket.socket()": "PermissionError",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')": "URLError",
    "import os; os.kill(os.getppid(), 9)": "PermissionError",
    "import os; os.killpg(0, 9)": "PermissionError",
    "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())": "PermissionError",
    "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_CPU, (1, 1))": "PermissionError",
    "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))": "ValueError",
    "import os; os.listdir(HOME)": "PermissionError",
    "open('/etc/passwd')": "PermissionError",
    "open('/proc/self/environ')": "PermissionError",
    "open(CANARY)": "PermissionError",
    "open(CANARY, 'w')": "PermissionError",
    "import os; os.remove(CANARY)": "PermissionError",
    "import os; os.truncate(CANARY, 0)": "PermissionError",
    "import os; os.rename(CANARY, CANARY + '2')": "PermissionError",
    "import os; os.chmod(CANARY, 0)": "PermissionError",
    "import os; os.chown(CANARY, 1, 1)": "PermissionError",
    "import os; os.utime(CANARY)": "PermissionError",
    "import os; os.symlink('/etc', 'x')": "PermissionError",
    "import os, shutil; shutil.rmtree(os.path.dirname(CANARY))": "PermissionError",
    "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0": "AssertionError",
    "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None) == 0": "AssertionError",
    "import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0": "AssertionError",
    "open('a', 'wb').write(bytes(2 << 20))\nopen('a', 'ab').write(bytes(2 << 20))": "",
}


@pytest.mark.parametrize("name", PASSING)
def test_what_an_honest_program_needs_is_there(name: str) -> None:
    assert run(PASSING[name], QUICK).is_passed, run(PASSING[name], QUICK)


@pytest.mark.parametrize("program", FAILING)
def test_what_would_harm_raises_in_the_program_and_harms_nothing(program: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    before = canary.stat()
    program = f"CANARY, HOME = {str(canary)!r}, {str(Path.home())!r}\n{program}"
    verdict = run(program, QUICK)
    assert verdict.status == "failed" and FAILING[program.partition("\n")[2]] in verdict.message, verdict
    assert canary.read_text() == "alive" and canary.stat().st_mode == before.st_mode
    assert canary.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time; time.sleep(99)", "while True:\n  try: open(1)\n  except BaseException: pass"],
)
def test_what_never_ends_is_ended(program: str) -> None:
    start = time.monotonic()
    assert run(program, Limits(seconds=0.5)).status == "timeout"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "import os\nwhile True: os.write(3, bytes(1 << 16))",
    ],
)
def test_an_end_without_a_result_is_no_success(program: str) -> None:
    assert run(program, QUICK).status == "killed"


def test_a_program_that_pretends_to_have_passed_has_not() -> None:
    program = 'import os; os.write(3, b\'{"token": "0", "status": "passed", "message": ""}\'); os._exit(0)'
    assert run(program, QUICK).status == "killed"


def test_files_are_written_in_a_folder_of_its_own_that_is_bounded_and_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not run("open('a', 'w').write('x')", QUICK).is_passed:
        pytest.skip("this kernel grants no namespaces, so there is no folder to write in")
    assert run("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')", QUICK).is_passed
    many = "for i in range(100):\n  with open(str(i), 'wb') as f: f.write(bytes(1 << 19))"
    assert "No space left" in run(many, QUICK).message
    empty = "for i in range(10**6): open(str(i), 'w').close()"
    assert "No space left" in run(empty, QUICK).message
    large = "f = open('a', 'wb')\nfor i in range(9): f.write(bytes(1 << 20))"
    assert "File too large" in run(large, QUICK).message
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_SECRET", "x")
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        program = INHERITED
        assert run(program, QUICK).is_passed


def test_a_program_that_is_too_long_fails() -> None:
    assert run("#" * (1 << 21), QUICK).status == "failed"


def outcome(denied: tuple[tuple[int, int], ...], program: str) -> str:
    code = DENYING.replace("{names}", repr([*denied])) + f"print(run({program!r}))\n"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout + found.stderr


def test_without_namespaces_there_is_no_folder_and_the_rest_holds() -> None:
    assert "status='passed'" in outcome((UNSHARE,), "x = 1")
    assert "Permission denied" in outcome((UNSHARE,), "open('a', 'w')")
    assert "Permission denied" in outcome((UNSHARE,), "open('/etc/passwd')")
    assert "not permitted" in outcome((UNSHARE,), "import socket; socket.socket()")


def test_without_landlock_nothing_is_run() -> None:
    found = outcome((LANDLOCK,), "x = 1")
    assert "ResourceError: code of the model cannot be isolated here (Landlock: Operation not permitted)" in found


def test_a_machine_without_the_walls_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.require()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(ResourceError, match=r"Linux .* alone"):
        sandbox.require()
