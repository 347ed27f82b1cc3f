"""Writing a packed folder, a layer at a time, so that what was cut off can go on.

Everything grows in DST.partial: the weights in a file whose first bytes, which make it a safetensors file, come last,
and `done`, a line for each layer that is safe on the disk. A later run with the same source, recipe and text takes up
there; with others it starts anew. When all is written the folder gets its name.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from coterie.checkpoint.atomic import require_disk, sync_folder
from coterie.checkpoint.calibrate import CALIBRATION_TOKENS, measure_importance
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import is_packed
from coterie.checkpoint.packed_layout import Layout, lay_out
from coterie.checkpoint.packed_sidecars import write_packed_sidecars
from coterie.checkpoint.pieces import Files
from coterie.checkpoint.quantise import Planned, plan_parts, quantised_parts, remarks
from coterie.checkpoint.tied import require_tied_equal
from coterie.errors import CheckpointError, ResourceError
from coterie.quant.importance import ENOUGH_TOKENS, Importance
from coterie.quant.recipe import Recipe

__all__ = ["write_packed"]

Progress = Callable[[int, int], None]
_UNFINISHED = "model.safetensors.unfinished"


def write_packed(
    checkpoint: Checkpoint,
    dst: Path,
    recipe: Recipe,
    *,
    calibration: Sequence[int] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Write a checkpoint as the packed folder `dst`, which must not exist; the peak is about one layer.

    `calibration`: token ids of a text by which inputs are weighed. `progress(done, total)` counts bytes read; `notice`
    is told what does not go as usual: matrices left plain, experts that saw too few tokens, work that is taken up.
    """
    planned = plan_parts(checkpoint, recipe)
    with Files(checkpoint.files) as files:
        require_tied_equal(checkpoint, files)
    with _partial(dst) as folder:
        journal = _Journal(folder, _fingerprint(checkpoint, recipe, calibration))
        with journal.locked():
            scale = 1 if calibration is None else 2
            steps = _scaled(progress, 0, scale)
            importance = _importance(checkpoint, folder, calibration, steps)
            about = _about(recipe, planned, importance)
            for sentence in remarks(planned, importance):
                notice(sentence)
            layout = lay_out(checkpoint.config, planned, about)
            if journal.n_done:
                notice(
                    f"{folder} has {journal.n_done} of {len(layout.units)} pieces from an earlier run; going on there"
                )
            else:
                require_disk(dst, layout.nbytes)
            _write_weights(checkpoint, recipe, layout, journal, importance, _scaled(progress, scale - 1, scale))
            write_packed_sidecars(checkpoint, folder, about, planned)
            journal.remove()


@contextmanager
def _partial(dst: Path) -> Iterator[Path]:
    dst = Path(os.path.abspath(dst))
    if dst.is_symlink() or (dst.exists() and not (dst.is_dir() and next(dst.iterdir(), None) is None)):
        raise CheckpointError(f"{dst} exists already; name a folder that does not, or remove it first")
    folder = dst.with_name(f"{dst.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_ours(folder)
        yield folder
        sync_folder(folder)
        if dst.exists():
            dst.rmdir()
        folder.rename(dst)
        sync_folder(dst.parent)
    except OSError as e:
        is_kept = (folder / "done").exists()
        rest = f"{folder} holds what is done, and the same command goes on there" if is_kept else "nothing is done"
        raise ResourceError(f"{dst} cannot be written: {(e.strerror or str(e)).lower()}; {rest}") from e


def _require_ours(folder: Path) -> None:
    """What an earlier run left is ours to delete: it has `done`, or is whole but for its name. Nothing else is."""
    if next(folder.iterdir(), None) is not None and not (folder / "done").is_file() and not is_packed(folder):
        raise CheckpointError(
            f"{folder}, where the work would go on, holds something else; move it away, or name another folder"
        )


class _Journal:
    """Which pieces are on the disk: a line with the fingerprint of the work, then a line for each piece."""

    def __init__(self, folder: Path, fingerprint: str):
        self.path, self._fingerprint = folder / "done", fingerprint
        self.folder, self._done = folder, set[str]()
        self._file: BinaryIO | None = None

    @contextmanager
    def locked(self) -> "Iterator[None]":
        with open(self.path, "a+b") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ResourceError(f"{self.folder} is being written by another process; wait for it") from None
            self._file = f
            f.seek(0)
            first, *names = f.read().decode().split("\n") or [""]
            if first == self._fingerprint:
                self._done = set(names[:-1])  # the last is empty, or a name that was cut off
            else:
                self._start_anew(f)
            try:
                yield
            except BaseException:
                if not self._done:  # nothing that a later run could use
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def _start_anew(self, f: BinaryIO) -> None:
        for path in self.folder.iterdir():
            if path != self.path:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        f.truncate(0)
        self._append(self._fingerprint)

    @property
    def n_done(self) -> int:
        return len(self._done)

    def has(self, name: str) -> bool:
        return name in self._done

    def add(self, name: str) -> None:
        self._done.add(name)
        self._append(name)

    def remove(self) -> None:
        (self.folder / "importance.safetensors").unlink(missing_ok=True)
        self.path.unlink()

    def _append(self, line: str) -> None:
        assert self._file is not None
        self._file.write(f"{line}\n".encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _write_weights(
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    journal: _Journal,
    importance: Importance | None,
    progress: Progress | None,
) -> None:
    path, done = journal.folder / _UNFINISHED, 0
    finished = journal.folder / "model.safetensors"
    if finished.exists():
        return
    with open(path, "r+b" if path.exists() else "w+b") as f:
        f.truncate(layout.nbytes)
        for unit, planned in layout.units.items():
            if not journal.has(unit):
                for name, part in quantised_parts(checkpoint, planned, recipe, importance, progress, done):
                    _write_at(f, layout.places[name], part)
                f.flush()
                os.fdatasync(f.fileno())
                journal.add(unit)
            done += sum(work.source.nbytes for p in planned for work in p.works)
        _write_at(f, 0, layout.header)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path, finished)


def _write_at(f: BinaryIO, at: int, part: Any) -> None:
    import torch

    f.seek(at)
    if not isinstance(part, bytes):
        data = part if isinstance(part, torch.Tensor) else part.data
        part = data.contiguous().view(-1).view(torch.uint8).numpy().data
    f.write(part)


def _importance(
    checkpoint: Checkpoint, folder: Path, ids: Sequence[int] | None, progress: Progress | None
) -> Importance | None:
    """Measured, or as an earlier run measured it for the same work."""
    if ids is None:
        return None
    path = folder / "importance.safetensors"
    if path.exists():
        return Importance.load(path)
    importance = measure_importance(checkpoint, ids, progress)
    importance.save(path)
    return importance


def _about(recipe: Recipe, planned: list[Planned], importance: Importance | None) -> dict[str, Any]:
    """What the file says of how it was made; the places of parts are added by the layout."""
    calibration = None
    if importance is not None:
        calibration = {
            "tokens": max(importance.counts.values()),
            "enough": ENOUGH_TOKENS,
            "coverage": importance.coverage(),
            "unweighted": importance.starved(),
        }
    plain = {p.name: p.reason for p in planned if p.reason}
    return recipe.to_fields() | {"calibration": calibration, "plain": plain}


def _scaled(progress: Progress | None, pass_: int, n_passes: int) -> Progress | None:
    """The progress of one of several passes over the same bytes."""
    if progress is None:
        return None
    return lambda done, total: progress(pass_ * total + done, n_passes * total)


def _fingerprint(checkpoint: Checkpoint, recipe: Recipe, ids: Sequence[int] | None) -> str:
    """What the work depends on, in one line."""
    files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in checkpoint.files]
    text = None if ids is None else hashlib.sha256(repr(list(ids[:CALIBRATION_TOKENS])).encode()).hexdigest()
    return json.dumps({"version": 1, "files": files, "recipe": recipe.to_fields(), "calibration": text})
