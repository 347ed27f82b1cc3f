import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.cli.interrupt import handle_interrupts

_SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:  # as C++ code in torch does while it starts up
    pass
print("went on")
"""


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)


def test_during_an_import_the_process_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(_SWALLOWS)
    done = run(tmp_path, "from coterie.cli.interrupt import handle_interrupts; handle_interrupts(); import slow")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "coterie: interrupted\n")


def test_kill_during_an_import_ends_the_process_at_once_too(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(_SWALLOWS.replace("SIGINT", "SIGTERM").replace("KeyboardInterrupt", "SystemExit"))
    done = run(tmp_path, "from coterie.cli.interrupt import unwinding\nwith unwinding(): import slow")
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_elsewhere_it_is_a_keyboard_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle_interrupts()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_of_somebody_else_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        handle_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
