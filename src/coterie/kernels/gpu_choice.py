"""Whether Triton's kernels can be used on a card: tried at the first use, not at import.

Triton compiles a small program for each kernel with the system's C compiler, so that it is installed says little: a
kernel that adds is run once. Where that fails, everything still works through torch's operations, slower, and one
warning says why. `COTERIE_KERNELS=reference` means no kernels, as on a CPU. In Triton's interpreter
(`TRITON_INTERPRET=1`, for tests) the kernels take tensors of the CPU within `interpreted()`.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from coterie.kernels.cpu_choice import ENVIRONMENT

__all__ = ["TYPES", "interpreted", "is_here", "is_inference", "is_usable", "n_processors", "problem", "without"]

TYPES = (torch.float32, torch.float16, torch.bfloat16)
_INTERPRETED, _WITHOUT = [False], [False]


def is_usable(x: Tensor) -> bool:
    """Whether the kernels of inference take this input: on a card, no gradient or autocast, a type they know."""
    return x.dtype in TYPES and is_here(x.device) and is_inference(x.device.type)


def is_inference(kind: str) -> bool:
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(kind)


def is_here(device: torch.device) -> bool:
    """Whether Triton's kernels run on this device."""
    if _WITHOUT[0]:
        return False
    if device.type != "cuda":
        return _INTERPRETED[0]
    return problem(device.index or 0) is None


@functools.cache
def problem(index: int = 0) -> str | None:
    """Why Triton cannot be used on a card, or None; the first to ask is warned."""
    if os.environ.get(ENVIRONMENT) == "reference":
        return f"{ENVIRONMENT} is reference"
    device = torch.device("cuda", index)
    try:
        found = _tried(device)
    except Exception as e:  # a missing compiler, an old driver, an old card: each says so in its own type
        found = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no reason given'}"
    if found is not None:
        warnings.warn(
            f"Triton's kernels cannot be used on {device} ({found[:200]}), so torch's operations are, which are "
            "slower; install triton and a C compiler, or see docs/gpu.md",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _tried(device: torch.device) -> str | None:
    from coterie.kernels import triton_rows

    with torch.no_grad(), torch.cuda.device(device):
        x = torch.tensor([[1.0, 2.0, 3.0]], device=device)
        total: list[float] = triton_rows.add(x, x).flatten().tolist()
    return None if total == [2.0, 4.0, 6.0] else "a sum came out wrong"


@functools.cache
def n_processors(device: torch.device) -> int:
    """Multiprocessors of the card; of the interpreter, few."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it the kernels also take tensors of the CPU, which needs Triton's interpreter: slow, for tests."""
    before, _INTERPRETED[0] = _INTERPRETED[0], True
    try:
        yield
    finally:
        _INTERPRETED[0] = before


@contextmanager
def without() -> Iterator[None]:
    """Within it a card computes with torch's operations: what the kernels are compared with."""
    before, _WITHOUT[0] = _WITHOUT[0], True
    try:
        yield
    finally:
        _WITHOUT[0] = before
