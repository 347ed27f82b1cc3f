"""The machine's matrix peak, measured: the best that a square product of torch reaches in the dtype of training.

A data sheet's figure is no use on a shared or throttled machine. Taken once per process, in under half a second, with a
generator of its own: the random numbers of the run stay as they are.
"""

import time
from functools import cache

import torch

__all__ = ["matrix_peak"]

_LARGEST = {"cpu": 1024, "cuda": 8192}


@cache
def matrix_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Floating-point operations per second of the fastest product of two n x n matrices, n from 256 up.

    n doubles while a product stays short, so that a machine where the dtype is emulated is not held up; each size is
    tried again for its part of `seconds`, because other programs may be in the way.
    """
    n, largest, best = 256, _LARGEST.get(device.type, 2048), 0.0
    with torch.no_grad():
        _fastest(n, dtype, device, 0)  # sets up the library, which on a card takes longer than all the rest
    ends = time.perf_counter() + seconds
    with torch.no_grad():
        while n <= largest and time.perf_counter() < ends:
            taken = _fastest(n, dtype, device, seconds / 4)
            best = max(best, 2 * n**3 / taken)
            if taken > seconds / 10:  # the next size takes eight times as long
                break
            n *= 2
    return best


def _fastest(n: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Seconds of the fastest product, of at least two (the first one sets things up)."""
    generator = torch.Generator(device).manual_seed(0)
    left = torch.rand((n, n), generator=generator, device=device).to(dtype)
    out = torch.empty_like(left)
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        for _ in range(2):
            best = min(best, _timed(left, out))
        if time.perf_counter() >= until:
            return best


def _timed(matrix: torch.Tensor, out: torch.Tensor) -> float:
    _wait(out.device)
    started = time.perf_counter()
    torch.mm(matrix, matrix.T, out=out)
    _wait(out.device)
    return max(time.perf_counter() - started, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
