import time

import pytest
import torch

from coterie.train.peak import matrix_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_half_a_second_and_without_touching_the_random_numbers(dtype: torch.dtype) -> None:
    before, started = torch.get_rng_state(), time.perf_counter()
    assert 1e8 < matrix_peak(dtype, CPU) < 1e16
    assert time.perf_counter() - started < 5  # 0.3 s on a machine that does nothing else
    assert torch.equal(before, torch.get_rng_state())


def test_measured_once_and_quickly() -> None:
    first = matrix_peak(torch.float64, CPU)
    started = time.perf_counter()
    assert matrix_peak(torch.float64, CPU) == first
    assert time.perf_counter() - started < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu() -> None:
    assert matrix_peak(torch.bfloat16, torch.device("cuda")) > 1e12
