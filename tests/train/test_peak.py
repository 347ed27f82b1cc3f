import time

import pytest
import torch

from coterie.train.peak import matrix_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_does_not_run_far_above_the_peak(dtype: torch.dtype) -> None:
    peak = matrix_peak(dtype, CPU)
    left = torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - started)
    assert peak > 1e8 and 2 * 512**3 / best < 3 * peak  # the machine may have been busy in between


def test_measured_once_and_quickly() -> None:
    first = matrix_peak(torch.float64, CPU)
    started = time.perf_counter()
    assert matrix_peak(torch.float64, CPU) == first
    assert time.perf_counter() - started < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    assert matrix_peak(torch.bfloat16, torch.device("cuda")) > 1e12
