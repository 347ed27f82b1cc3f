"""Seconds to save a training state and to verify it before use, beside `torch.save` with one fsync, in turn.

Ours writes, forces to disk, reads back and compares hashes; `torch.save` makes a pickle and checks nothing.
"""

import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peers import arguments, interleave, machine, report

from coterie import CoterieError
from coterie.checkpoint.atomic import require_disk
from coterie.train.sealed import check
from coterie.train.state import Checkpoints, checkpoint_folder

_TENSORS = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "coterie", "benchmarks")
    parser.add_argument("--folder", type=Path, default=cache, help=f"on the disk to be measured (default: {cache})")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state (default: 1)")
    args = parser.parse_args(argv)
    target = args.folder / "checkpoint-state"
    try:
        require_disk(target, int(4e9 * args.gigabytes))
        _measure(target, args.gigabytes, args.rounds)
    except CoterieError as e:
        sys.exit(f"{Path(__file__).name}: {e}")
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _measure(target: Path, gigabytes: float, rounds: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    n = max(1, int(gigabytes * 1e9 / 4 / _TENSORS))
    state = {f"tensor{i}": torch.randn(n) for i in range(_TENSORS)}
    size, checkpoints, step = _TENSORS * n * 4 / 1e9, Checkpoints(target), 0

    def save() -> float:
        nonlocal step
        step += 1
        return _seconds(lambda: checkpoints.save(step, state, {"step": step}), size)

    def pickle() -> float:
        def write() -> None:
            with open(target / "state.pt", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        return _seconds(write, size)

    print(f"{size:.2f} GB in {_TENSORS} tensors, {machine()}")
    report("save", "s/GB", interleave({"coterie": save, "torch.save": pickle}, rounds), "coterie", False)
    (target / "state.pt").unlink()

    def verify() -> float:
        return _seconds(lambda: check(checkpoint_folder(target, step), step), size)

    def latest() -> float:
        return _seconds(checkpoints.latest, size)

    report("read", "s/GB", interleave({"verify": verify, "verify and load": latest}, rounds), "verify", False)


def _seconds(work: Callable[[], object], size: float) -> float:
    """For each gigabyte."""
    gc.collect()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / size


if __name__ == "__main__":
    main()
