"""The state of a run on disk: run/checkpoints/step-00001200/, a folder for each of the two newest checkpoints.

A checkpoint is written under another name, forced to disk, read back and compared, and only then renamed; the older
ones go after that. So a killed process, a full disk or a power cut leaves the last good one. Tensors are safetensors,
plain data is JSON: nothing is ever unpickled.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coterie.checkpoint.atomic import disk_errors, new_file, new_folder
from coterie.checkpoint.json_text import parse_object
from coterie.checkpoint.safetensors import TensorSpec, write_file
from coterie.errors import CheckpointError
from coterie.train.sealed import MANIFEST, NewerFormatError, check, seal

__all__ = [
    "Checkpoints", "State", "checkpoint_folder", "new_checkpoint", "read_meta", "read_state", "write_meta",
    "write_state",
]  # fmt: skip

State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and plain data
TENSORS, META = "state.safetensors", "meta.json"
_KEPT = 2
_FOLDER = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"step-(\d{8,})\.partial-[0-9a-f]+")
_CODES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is: `run/checkpoints/step-00001200`."""
    return run / "checkpoints" / f"step-{step:08d}"


@contextmanager
def new_checkpoint(run: Path, step: int, digests: dict[str, str] | None = None) -> Iterator[Path]:
    """A folder to fill that becomes the checkpoint of `step` when it is whole, on the disk and verified.

    `digests` may be filled in the block: the sha256 of files whose bytes were seen in memory. Raises `ResourceError`
    where the disk refuses, `CheckpointError` where it gives back something else; the older checkpoints then stay.
    """
    with new_folder(checkpoint_folder(run, step), replace=True) as partial:
        yield partial
        seal(partial, step, digests or {})
        check(partial, step)


class Checkpoints:
    """The checkpoints of a run. `passed_over` says, after `latest`, which newer ones were damaged, and how."""

    def __init__(self, run: Path):
        self.run, self.passed_over = run, list[str]()
        self._verified = set[int]()

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write and verify a checkpoint, then drop all but the two newest that are known to be good."""
        digests: dict[str, str] = {}
        with self.new(step, digests) as folder:
            digests |= write_state(folder, tensors, meta)

    @contextmanager
    def new(self, step: int, digests: dict[str, str] | None = None) -> Iterator[Path]:
        """`new_checkpoint` of this run, after which the older ones go."""
        with new_checkpoint(self.run, step, digests) as folder:
            yield folder
        self._verified.add(step)
        self._drop_old()

    def latest(self, read: Callable[[Path], State] | None = None) -> State | None:
        """The newest checkpoint that is what was written, as `read` (here `self.read`) reads it; None: there is none.

        `CheckpointError` names what is wrong where all are damaged, or the newest is of a later format. What `read`
        finds wrong is no damage: it is raised, and no older one taken.
        """
        self.passed_over = []
        for step in sorted(self.steps(), reverse=True):
            folder = checkpoint_folder(self.run, step)
            try:
                check(folder, step)
            except NewerFormatError:
                raise
            except CheckpointError as e:
                self.passed_over.append(str(e))
                continue
            self._verified.add(step)
            return (read or self.read)(folder)
        if self.passed_over:
            raise CheckpointError(
                f"no checkpoint of {self.run} can be used: {'; '.join(self.passed_over)}; put one back from a copy, "
                "or start again with --fresh"
            )
        if (self.run / TENSORS).exists():
            raise CheckpointError(
                f"{self.run / TENSORS} is a state as an earlier version of the program wrote it and cannot be used; "
                "end that run with the version that began it, or start again with --fresh"
            )
        return None

    def read(self, folder: Path) -> State:
        """What is in the folder of a checkpoint."""
        return read_state(folder)

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, good or not."""
        return [int(match[1]) for name in self._names() if (match := _FOLDER.fullmatch(name))]

    def tidy(self) -> None:
        """Finish or remove what a killed process left; only for the process that holds the run's lock."""
        for name in self._names():
            if match := _UNFINISHED.fullmatch(name):
                self._settle(self.run / "checkpoints" / name, int(match[1]))

    def _settle(self, partial: Path, step: int) -> None:
        """A whole checkpoint that only lacked its last rename gets its name; anything else goes."""
        target = checkpoint_folder(self.run, step)
        with suppress(CheckpointError), disk_errors(target):
            if not target.exists():
                check(partial, step)
                partial.rename(target)
        shutil.rmtree(partial, ignore_errors=True)

    def _names(self) -> list[str]:
        folder = self.run / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def _drop_old(self) -> None:
        """The manifest goes first: what is left of a folder, should this be cut short, is no checkpoint."""
        newest = sorted(self._verified)[-_KEPT:]
        if len(newest) < _KEPT:
            return
        self._verified = set(newest)
        for step in self.steps():
            if step < newest[0]:
                folder = checkpoint_folder(self.run, step)
                with suppress(OSError):
                    (folder / MANIFEST).unlink()
                shutil.rmtree(folder, ignore_errors=True)


def write_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, str]:
    """Tensors of any dtype and plain data, as two files; returns the sha256 of each, taken from memory."""
    specs = [TensorSpec(name, _CODES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    contents = (_bytes(t) for t in tensors.values())
    of_tensors = hashlib.sha256()
    write_file(folder / TENSORS, specs, contents, seen=of_tensors.update)
    return {TENSORS: of_tensors.hexdigest()} | write_meta(folder, meta)


def write_meta(folder: Path, meta: dict[str, Any]) -> dict[str, str]:
    """The plain data alone, for a checkpoint whose tensors somebody else writes; its sha256, taken from memory."""
    raw = json.dumps(meta, indent=1, allow_nan=False).encode()
    with new_file(folder / META) as file:
        file.write(raw)
    return {META: hashlib.sha256(raw).hexdigest()}


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def read_state(folder: Path) -> State:
    """What `write_state` wrote, in main memory; else `CheckpointError`."""
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, read_meta(folder)  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{folder} is not a training state that can be resumed ({e})") from None


def read_meta(folder: Path) -> dict[str, Any]:
    """What `write_meta` wrote; `CheckpointError` where it is no JSON object, `OSError` where it is not there."""
    return parse_object((folder / META).read_bytes(), str(folder / META), CheckpointError)
