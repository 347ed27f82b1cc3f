"""`coterie train RECIPE --verify-resume`: the proof, on this machine, that resuming is exact.

Each stretch is the command itself in a process of its own, in a temporary folder beside the run's. The run's own folder
is read (its vocabulary and tokens need not be made again) and never written.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from coterie.cli.output import note

__all__ = ["verify_resume"]

_STEPS = 6


def verify_resume(recipe: Path, folder: Path, *, last: int, steps: int | None, options: Sequence[str] = ()) -> None:
    """A sentence where all is well; else the differences and exit code 1.

    `folder` is where the run would be, `last` the recipe's last step; `options` go to every stretch.
    """
    from coterie.errors import RecipeError
    from coterie.train.verify_resume import verify_resume as prove

    n = min(steps or _STEPS, last)
    if n < 2:
        raise RecipeError(f"--verify-resume needs 2 steps or more, one before the stop and one after it; there is {n}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-verify-", dir=_existing(folder)) as temporary:

        def train(run: Path, until: int) -> None:
            known = run.with_name("straight") if run.name != "straight" else folder
            _share(known, run)
            note(f"training to step {until} in {run.name}")
            _stretch([str(recipe), "--out", str(run), "--steps", str(until), *options])

        found = prove(train, Path(temporary), n)
    if not found:
        note(
            f"resuming is exact: {n} steps at a stretch and {n // 2} + {n - n // 2} with a new start give the same bits"
        )
        return
    for sentence in found[:8]:
        note(sentence)
    note(f"resuming is not exact: {len(found)} differences" + (", the first 8 above" if len(found) > 8 else ""))
    raise click.exceptions.Exit(1)


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there: on the disk that the run is for."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _share(known: Path, run: Path) -> None:
    """Links to the vocabulary and the tokens of another run, file by file, so that nothing is written into it."""
    for name in ("tokenizer", "tokens"):
        if (known / name).is_dir() and not (run / name).exists():
            shutil.copytree(known.absolute() / name, run / name, copy_function=os.symlink)


def _stretch(arguments: list[str]) -> None:
    """The command in a process of its own; where it fails, its last sentence is ours."""
    from coterie.errors import CoterieError

    command = [sys.executable, "-m", "coterie", "train", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise CoterieError(said[-1].removeprefix("coterie: "))
