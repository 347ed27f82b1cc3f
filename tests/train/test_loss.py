import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from coterie.train.loss import highest_bytes, linear_cross_entropy


@pytest.mark.parametrize("n_rows", [1, 255, 256, 700])
def test_equals_plain_cross_entropy_with_both_gradients(n_rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(n_rows, 16, requires_grad=True)
    weight = torch.randn(100, 16, requires_grad=True)
    targets = torch.randint(0, 100, (n_rows,))
    targets[0] = -1  # not counted
    ours = linear_cross_entropy(x, weight, targets)
    grads = torch.autograd.grad(ours, (x, weight))
    plain = functional.cross_entropy(x @ weight.T, targets, ignore_index=-1, reduction="sum")
    expected = (
        torch.autograd.grad(plain, (x, weight)) if n_rows > 1 else (torch.zeros_like(x), torch.zeros_like(weight))
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    loss = linear_cross_entropy(torch.zeros(3, 4), torch.randn(7, 4), torch.tensor([0, 3, 6]))
    assert loss.item() == pytest.approx(3 * torch.log(torch.tensor(7.0)).item())


def test_large_logits_do_not_overflow() -> None:
    x = torch.full((1, 1), 1e4)
    loss = linear_cross_entropy(x, torch.tensor([[1.0], [0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(1e4)


def test_without_gradients_the_same_sum() -> None:
    torch.manual_seed(0)
    x, weight, targets = torch.randn(300, 16), torch.randn(50, 16), torch.randint(-2, 50, (300,))
    with_gradients = linear_cross_entropy(x.requires_grad_(), weight, targets)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, weight, targets), with_gradients.detach())


_PEAK = """
import sys, torch
from coterie.train.loss import linear_cross_entropy
dtype, T, D, V, is_training = getattr(torch, sys.argv[1]), *map(int, sys.argv[2:])
x, weight, targets = torch.randn(T, D).to(dtype).requires_grad_(), torch.randn(V, D).to(dtype), torch.randint(V, (T,))
linear_cross_entropy(x[:8], weight.requires_grad_()[:32], targets[:8] % 32, dtype).backward()  # what torch itself needs
def status(key): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
with torch.set_grad_enabled(bool(is_training)):
    loss = linear_cross_entropy(x, weight, targets, dtype)
print(status("VmHWM") - before)
"""


def taken(dtype: str, *numbers: int) -> int:
    """Bytes at the highest moment of a process of its own, of one thread: torch's products keep copies in each."""
    command, env = [sys.executable, "-c", _PEAK, dtype, *map(str, numbers)], os.environ | {"OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2100, 64, 16384), (256, 512, 16384)], ids=["many rows", "wide"])
def test_the_highest_moment_holds_one_block_of_logits(dtype: str, shape: tuple[int, int, int]) -> None:
    """So does a score, which needs no gradients beside it."""
    planned = highest_bytes(*shape, getattr(torch, dtype), "cpu")
    assert taken(dtype, *shape, 1) == pytest.approx(planned, rel=0.15, abs=4e6)
    assert taken(dtype, *shape, 0) < planned
