"""The state of a run on disk: one safetensors file, replaced in one rename, never a pickle."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coterie.errors import CheckpointError

__all__ = ["load_state", "save_state"]


def save_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write beside `path`, reach the disk, then rename: a killed process leaves the old state or the new one."""
    partial = path.with_suffix(".partial")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata={"meta": json.dumps(meta)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as e:
        raise CheckpointError(f"{path} is not a training state that can be resumed: {e}") from None
