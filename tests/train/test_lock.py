import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.errors import ResourceError
from coterie.train.lock import hold_run

HOLDER = """
import sys, pathlib
from coterie.train.lock import hold_run
with hold_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_which_one_has_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(ResourceError, match=f"process {first.pid} is training in"), hold_run(tmp_path):
            pytest.fail("entered")
        first.kill()
    assert first.returncode == -signal.SIGKILL
    with hold_run(tmp_path):  # the dead hold nothing
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_child_that_outlives_the_holder_does_not_hold_it(tmp_path: Path) -> None:
    """Workers that were forked keep open files; a lock that goes with the file would outlive its process."""
    code = HOLDER.replace("    print(", "    import os\n    if os.fork() == 0:\n        sys.stdin.read()\n    print(")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with hold_run(tmp_path):
        pass
    process.stdin.close()
    process.stdout.close()


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"), hold_run(tmp_path / "file" / "run"):
        pytest.fail("entered")
