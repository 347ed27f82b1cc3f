"""Which native module there is, and which instruction set of it is used: made at the first use, not at import.

The only importer of `coterie._native`, which may be absent. Which instruction set: the best this processor has, or the
one that `COTERIE_KERNELS` or `use` names; "reference" means none of them.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RequestError, nearest

__all__ = ["ENVIRONMENT", "TYPES", "State", "can_train", "is_usable", "module", "names", "state", "use", "used"]

ENVIRONMENT = "COTERIE_KERNELS"
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class State:
    """What was chosen; made at the first use, so that importing reads neither the environment nor the processor."""

    def __init__(self) -> None:
        self.module: Any = None
        self.name = "reference"
        self.n_threads = 0
        try:
            self.module = import_module("coterie._native")
        except ImportError:
            pass
        self.choose(os.environ.get(ENVIRONMENT) or self.names()[0])

    def names(self) -> list[str]:
        return [*(self.module.names() if self.module else ()), "reference"]

    def choose(self, name: str) -> None:
        if name not in self.names():
            raise RequestError(
                f"the kernels {name!r} are not there, expected one of {', '.join(self.names())}"
                f"{nearest(name, self.names())}"
            )
        if name != "reference":
            self.module.choose(name)
        self.name = name


@functools.cache
def state() -> State:
    return State()


def names() -> list[str]:
    """What can be chosen on this machine, the fastest first; the last is always "reference"."""
    return state().names()


def used() -> str:
    """The instruction set in use: avx512bf16, avx512vnni, avx2, neon, portable, or reference."""
    return state().name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within it the kernels are those of one instruction set; `RequestError` where this machine has not got them."""
    chosen = state()
    before = chosen.name
    chosen.choose(name)
    try:
        yield
    finally:
        chosen.choose(before)


def is_usable(x: Tensor) -> bool:
    """Whether the native kernels take this input: on a CPU, no gradient or autocast, a type they know."""
    is_inference = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return is_inference and x.is_cpu and x.dtype in TYPES and state().name != "reference"


def can_train() -> bool:
    """Whether the native kernels of training are there and in use; autocast is torch's business."""
    return state().name != "reference" and not torch.is_autocast_enabled("cpu")


def module() -> Any:
    """The native module, told how many threads torch uses."""
    chosen, n_threads = state(), torch.get_num_threads()
    if n_threads != chosen.n_threads:
        chosen.module.set_threads(n_threads)
        chosen.n_threads = n_threads
    return chosen.module
