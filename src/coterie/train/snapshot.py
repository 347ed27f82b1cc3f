"""What of a run is saved, and whether a saved state may go on as this run.

Tensors: `master/NAME` and the optimizer's moments, `buffer/NAME` for what a model keeps beside its parameters (the bias
of a balanced router), `random/...`. Where the run is in its data is its step: batch n is a function of (seed, n).
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError
from coterie.train.optim import MasterOptimizer
from coterie.train.parts import part_of
from coterie.train.random_state import random_states, restore_random_states

__all__ = ["require_same_run", "restore", "snapshot", "spoilt"]


def snapshot(model: nn.Module, optimizer: MasterOptimizer, device: torch.device) -> dict[str, Tensor]:
    """Everything that a step reads and changes; the tensors are the run's own, not copies."""
    buffers = {f"buffer/{name}": buffer for name, buffer in _buffers(model).items()}
    return optimizer.state() | buffers | random_states(device)


def restore(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: MasterOptimizer, device: torch.device, *, where: Path
) -> None:
    """Take over what `snapshot` gave; `CheckpointError` where a tensor is missing or of another shape."""
    buffers = _buffers(model)
    for name, buffer in buffers.items():
        found = tensors.get(f"buffer/{name}")
        if found is None or found.shape != buffer.shape or found.dtype != buffer.dtype:
            what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise CheckpointError(
                f"{where}: {name!r} is {what}, expected {buffer.dtype} {list(buffer.shape)}; start again with --fresh"
            )
    optimizer.load_state(tensors, where=where)
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(tensors[f"buffer/{name}"])
    restore_random_states(tensors, device)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that are part of the model's state; tables that can be computed again are not."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # a tied head is one
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def spoilt(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor of which this rank holds a NaN or an infinity, if there is one."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(part_of(tensor).isfinite().all()):
            return name
    return None


def _text_name(file: list[Any]) -> str:
    return f"{file[0]} with {file[1]:,} tokens" + "".join(f" (sha256 {digest})" for digest in file[2:])


def require_same_run(meta: dict[str, Any], mine: dict[str, Any], where: Path) -> None:
    """`CheckpointError` that names the first field in which a saved run is not this one.

    Both hold `fields` ({"model": {...}, "steps": ...}) and `data` ([[file, tokens, sha256], ...]); `meta` its step too.
    """
    fields = meta.get("fields")
    if type(meta.get("step")) is not int or not isinstance(meta.get("seconds"), int | float) or not _is_tree(fields):
        raise CheckpointError(f"{where} is not the state of a training run; start again with --fresh")
    assert isinstance(fields, dict)
    other = _difference(fields["model"], mine["fields"]["model"])
    if other:
        raise CheckpointError(f"{where} belongs to another model: {other}; {_WHAT_TO_DO}")
    other = _difference({"optimizer": "adamw"} | fields | {"model": 0}, mine["fields"] | {"model": 0})
    if other:
        raise CheckpointError(f"{where} belongs to another recipe: {other}; {_WHAT_TO_DO}")
    theirs, ours = meta.get("data", mine["data"]), mine["data"]
    if theirs != ours:
        first = next((pair for pair in zip_longest(theirs, ours) if pair[0] != pair[1]), (theirs, ours))
        then, now = (_text_name(file) if file else "nothing" for file in first)
        raise CheckpointError(f"{where} was trained on other text: {then} there and {now} here; {_WHAT_TO_DO}")


_WHAT_TO_DO = "choose another folder with --out, or start again with --fresh"


def _is_tree(fields: Any) -> bool:
    return isinstance(fields, dict) and isinstance(fields.get("model"), dict)


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    for key in sorted(theirs.keys() | mine.keys()):
        if theirs.get(key) != mine.get(key):
            return f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"
    return ""
