"""What the benchmarks on a card share: whether there is one, what it can do, random weights of any format."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coterie.kernels.packed import FP8, Layout, Packed
from coterie.quant.formats import FORMATS

__all__ = ["bandwidth", "is_missing", "matrix_peak", "numbers", "random_stack", "seconds"]


def is_missing() -> bool:
    """Says so where torch sees no card."""
    if not torch.cuda.is_available():
        print("this needs a CUDA card, and torch sees none: nothing was measured")
    return not torch.cuda.is_available()


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median over runs, each waited for."""
    taken = []
    for i in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def bandwidth() -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(1 << 31, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 10)


def matrix_peak() -> float:
    """Operations per second of a bf16 product of random matrices."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / seconds(lambda: torch.mm(a, b, out=out), 10)


def random_stack(kind: str, shape: tuple[int, int, int]) -> Tensor | Packed:
    """Any bits are weights; scales are about what makes outputs of the size of inputs."""
    if kind == "bf16":
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda") / shape[2] ** 0.5
    if kind == "fp8":
        stack = Packed.empty(FP8, shape, "cuda")
        for e in range(shape[0]):
            stack.put_fp8(e, 0, torch.randn(shape[1:], device="cuda") / shape[2] ** 0.5)
        return stack
    f = FORMATS[kind]
    stack = Packed.empty(Layout(f.bits, f.unit, f.group, f.scales, f.label), shape, "cuda")
    for t in (stack.low, *(t for t in (stack.high, stack.sub) if t is not None)):
        info = torch.iinfo(t.dtype)
        t.random_(info.min, info.max)
    d = (
        torch.rand(stack.scale.shape, device="cuda") / (1 << f.bits) / shape[2] ** 0.5 / (64 if f.is_super else 1)
    ).half()
    if stack.scale.dtype == torch.int32:
        stack.scale.copy_(torch.stack((d, d * (1 << f.bits) / 2), -1).view(torch.int32).squeeze(-1))
    else:
        stack.scale.copy_(d)
    return stack


def numbers(stack: Tensor | Packed, e: int) -> Tensor:
    return stack.numbers(e) if isinstance(stack, Packed) else stack[e].float()
