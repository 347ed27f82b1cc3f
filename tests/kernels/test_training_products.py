"""Products of bf16 in the processor's own instruction: beside float64, in every odd size, the same with any threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, training_products, training_reference

SIZES = [(1, 2, 2), (14, 32, 16), (37, 18, 34), (64, 130, 46), (71, 256, 96), (130, 34, 16), (3, 512, 30)]
SIZES += [(17, 2302, 40), (2303, 46, 66)]  # sums in stretches


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def far(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def own_instruction() -> Iterator[None]:
    if not training_products.has_products(bf16(2, 2)):
        pytest.skip("this processor has no product of bf16, or the native kernels are not in use")
    yield


@pytest.mark.parametrize(("n", "M", "N"), SIZES)
def test_products_are_those_of_float64_rounded(n: int, M: int, N: int) -> None:
    a, b, w = bf16(n, M), bf16(n, N), bf16(N, M)
    exact_a, exact_b, exact_w = a.double(), b.double(), w.double()
    assert far(training_products.product(a, training_products.strips_of_rows(w), N), exact_a @ exact_w.t()) < 4e-3
    assert far(training_products.product(b, training_products.strips_of_columns(w), M), exact_b @ exact_w) < 4e-3
    assert far(training_products.transposed_product(a, b), exact_a.t() @ exact_b) < 4e-3
    sums = torch.randn(M, N, generator=torch.Generator().manual_seed(1))
    exact = sums.double() + exact_a.t() @ exact_b
    training_products.add_transposed_product_(sums, a, b)
    assert far(sums, exact) < 1e-6


@pytest.mark.parametrize(("n", "M", "N"), SIZES)
def test_the_twin_agrees(n: int, M: int, N: int) -> None:
    a, b, w, twin = bf16(n, M), bf16(n, N), bf16(N, M), training_reference
    exact = twin.product(a, twin.strips_of_rows(w), N).double()
    assert far(training_products.product(a, training_products.strips_of_rows(w), N), exact) < 8e-3
    assert far(training_products.transposed_product(a, b), twin.transposed_product(a, b).double()) < 8e-3


def test_a_number_that_is_none_stays_in_its_row() -> None:
    """A tile is read whole: the row after the last of it must not matter."""
    a, w = bf16(28, 8), bf16(4, 8)
    a[20] = float("nan")
    got = training_products.product(a[:17], training_products.strips_of_rows(w), 4)
    assert bool(got.isfinite().all())


def test_the_same_bits_with_any_number_of_threads() -> None:
    a, b, w, n_threads = bf16(2500, 64), bf16(2500, 96), bf16(96, 64), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(
                (
                    training_products.product(a, training_products.strips_of_rows(w), 96),
                    training_products.transposed_product(a, b),
                )
            )
    finally:
        torch.set_num_threads(n_threads)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_kernels_without_the_instruction_have_no_products() -> None:
    with cpu.use("reference"):
        assert not training_products.has_products(bf16(2, 2))
