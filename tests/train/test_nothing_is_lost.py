"""A run that is killed, or whose disk is full, at any moment goes on from step k or k-1 and ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.train.state import Checkpoints

DRIVER = Path(__file__).with_name("kill_driver.py")


class Driver:
    """Starts trainings in processes of their own, one at a time, and kills them."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process

    def start(self, folder: Path, steps: int) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder} {steps}\n")
        self._process.stdin.flush()
        return int(self.answer())

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def to_the_end(self, folder: Path, steps: int) -> None:
        self.start(folder, steps)
        assert self.answer() == "0"

    def killed(self, folder: Path, steps: int, after: float) -> bool:
        """Whether it was killed; False where it was done before that."""
        pid = self.start(folder, steps)
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.answer() == str(-signal.SIGKILL)


@pytest.fixture
def driver() -> Iterator[Driver]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(DRIVER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        driver = Driver(process)
        assert driver.answer() == "ready"
        yield driver
        assert process.stdin is not None
        process.stdin.close()


def lines(run: Path) -> list[dict[str, Any]]:
    """The log's whole lines."""
    path = run / "log.jsonl"
    raw = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in raw if line.endswith(b"\n")]


def saved(run: Path) -> int:
    """The step that a resumed run would begin with; it is the last logged one or the one before."""
    found = Checkpoints(run).latest()
    step = 0 if found is None else int(found[1]["step"])
    assert step in (len(lines(run)), len(lines(run)) - 1)
    return step


def assert_same_end(run: Path, whole: Path) -> None:
    a, b = Checkpoints(run).latest(), Checkpoints(whole).latest()
    assert a is not None and b is not None and a[1]["step"] == b[1]["step"] and a[0].keys() == b[0].keys()
    for name, tensor in a[0].items():
        assert torch.equal(tensor, b[0][name]), name
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in lines(run)] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in lines(whole)
    ]


def test_killed_at_random_moments(tmp_path: Path, driver: Driver, is_full: bool) -> None:
    """`kill -9`, again and again: 8 times, or 100. A run that was done before all kills were is begun anew."""
    seed = random.randrange(1 << 32)
    chance, steps, n_kills, n_runs = random.Random(seed), 40 if is_full else 20, 0, 0
    started = time.monotonic()
    driver.to_the_end(tmp_path / "whole", steps)
    longest = min(1.0, 0.6 * (time.monotonic() - started))
    while n_kills < (100 if is_full else 8):
        run, step, is_done = tmp_path / f"run{n_runs}", 0, False
        n_runs += 1
        while not is_done and n_kills < (100 if is_full else 8):
            is_done = not driver.killed(run, steps, chance.uniform(0, longest))
            n_kills += not is_done
            assert step <= saved(run), f"seed {seed}: step {step} was lost"
            step = saved(run)
        driver.to_the_end(run, steps)
        assert_same_end(run, tmp_path / "whole")
