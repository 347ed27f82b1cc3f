"""A linear layer by native products of bf16, beside float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from coterie.kernels import linear, linear_training, training_products


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def far(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def own_instruction() -> Iterator[None]:
    if not training_products.has_products(bf16(2, 2)):
        pytest.skip("this processor has no product of bf16, or the native kernels are not in use")
    yield


def test_gradients_are_those_of_float64() -> None:
    x, weight, grad = bf16(53, 34), bf16(48, 34), bf16(53, 48)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    y = linear(*leaves)
    assert "_Linear" in str(y.grad_fn)
    y.backward(grad)
    assert far(y.detach(), x.double() @ weight.double().t()) < 4e-3
    for leaf, exact in zip(leaves, (grad.double() @ weight.double(), grad.double().t() @ x.double()), strict=True):
        assert leaf.grad is not None and far(leaf.grad, exact) < 4e-3


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight = bf16(5, 6), bf16(4, 6).requires_grad_()
    linear_training.linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


def test_odd_sizes_and_other_types_go_the_plain_way() -> None:
    assert not training_products.has_products(bf16(4, 3)) and not training_products.has_products(bf16(4, 4).float())
    y = linear(bf16(4, 6), bf16(3, 6).requires_grad_())  # three outputs: its gradient would sum over an odd number
    assert "_Linear" not in str(y.grad_fn)
