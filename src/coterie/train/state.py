"""The state of a run on disk: one safetensors file of float32 tensors, replaced in one rename, never a pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coterie.checkpoint.atomic import disk_errors
from coterie.checkpoint.safetensors import TensorSpec, write_file
from coterie.errors import CheckpointError

__all__ = ["load_state", "save_state"]


def save_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """A killed process, a full disk or Ctrl-C leaves the old state or the new one; `ResourceError` if it cannot be."""
    assert all(t.dtype == torch.float32 for t in tensors.values())
    specs = [TensorSpec(name, "F32", tuple(t.shape)) for name, t in tensors.items()]
    contents = (t.detach().cpu().contiguous().reshape(-1).numpy() for t in tensors.values())
    with disk_errors(path):
        write_file(path, specs, contents, {"format": "pt", "meta": json.dumps(meta)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (in main memory) and the plain data that `save_state` was given; else `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as e:
        raise CheckpointError(
            f"{path} is not a training state that can be resumed ({e}); start again with --fresh"
        ) from None
