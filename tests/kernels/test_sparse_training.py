"""The sparse block's one function of autograd against a loop that autograd differentiates itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, reference, sparse_ffn_training

Block = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
KERNELS = list(dict.fromkeys([cpu.names()[0], "reference"]))
OF_BF16 = list(dict.fromkeys([*cpu.names()[:2], "reference"]))  # with the processor's own product of bf16, and without


def inputs(T: int, K: int, E: int, D: int, F: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weights, gate_up, down and the gradient of the result."""
    g = torch.Generator().manual_seed(T * 100 + K * 10 + E)
    shapes = [(T, D), (T, K), (E, 2 * F, D), (E, D, F), (T, D)]
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def results(block: Block, ids: Tensor, given: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of x, weights, gate_up, down."""
    *leaves, grad = given
    x, weights, gate_up, down = (t.detach().clone().requires_grad_() for t in leaves)
    y = block(x, ids, weights, gate_up, down)
    y.backward(grad)
    return [y.detach(), *(t.grad if t.grad is not None else torch.zeros_like(t) for t in (x, weights, gate_up, down))]


def ids_of(kind: str, T: int, K: int, E: int) -> Tensor:
    g = torch.Generator().manual_seed(T + K)
    if kind == "one takes all":
        return torch.full((T, K), E - 1, dtype=torch.int32)
    if kind == "none":
        return torch.full((T, K), -1, dtype=torch.int32)
    low, high = {"random": (0, E), "some unused": (-1, E), "idle experts": (1, E - 1)}[kind]
    return torch.randint(low, high, (T, K), generator=g, dtype=torch.int32)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["random", "some unused", "idle experts", "one takes all", "none"])
@pytest.mark.parametrize(("T", "K", "E", "D", "F"), [(0, 2, 4, 3, 5), (1, 1, 4, 3, 5), (40, 2, 6, 18, 35)])
def test_all_gradients_are_those_of_the_loop(kind: str, T: int, K: int, E: int, D: int, F: int, kernels: str) -> None:
    ids = ids_of(kind, T, K, E)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        given = inputs(T, K, E, D, F, dtype)
        expected = results(reference.sparse_ffn, ids, [t.double() for t in given])
        with cpu.use(kernels):
            for got, exact in zip(results(sparse_ffn_training, ids, given), expected, strict=True):
                assert got.dtype == dtype
                torch.testing.assert_close(got.double(), exact, rtol=bound, atol=bound * (1 + _largest(exact)))


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def test_gradcheck() -> None:
    *given, _ = inputs(7, 2, 3, 4, 3)
    ids = torch.tensor([[0, 1], [1, 0], [2, -1], [-1, -1], [0, 2], [2, 2], [1, 2]], dtype=torch.int32)
    leaves = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(lambda x, w, g, d: sparse_ffn_training(x, ids, w, g, d), leaves)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_weight_of_zero_has_its_exact_gradient(kernels: str) -> None:
    """<y, dy> / weight would be 0 / 0 there."""
    given = inputs(9, 2, 3, 8, 6, torch.float32)
    given[1][:, 1] = 0.0
    ids = ids_of("random", 9, 2, 3)
    expected = results(reference.sparse_ffn, ids, [t.double() for t in given])[2]
    with cpu.use(kernels):
        got = results(sparse_ffn_training, ids, given)[2]
    assert float(expected[:, 1].abs().min()) > 0
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", OF_BF16)
@pytest.mark.parametrize("kind", ["random", "some unused", "idle experts", "one takes all"])
@pytest.mark.parametrize(("T", "E", "D", "F"), [(300, 4, 64, 96), (517, 9, 34, 150), (5, 9, 270, 18)])
def test_bfloat16_is_as_near_to_float64_as_its_rounding(
    kind: str, T: int, E: int, D: int, F: int, kernels: str
) -> None:
    """Relative error of each gradient as a whole: under 1 %, for inputs that are themselves exact."""
    ids = ids_of(kind, T, 2, E)
    given = inputs(T, 2, E, D, F, torch.bfloat16)
    given[1] = given[1].float()
    exact = results(reference.sparse_ffn, ids, [t.double() for t in given])
    with cpu.use(kernels):
        for got, wanted in zip(results(sparse_ffn_training, ids, given), exact, strict=True):
            assert float((got.double() - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("kind", ["random", "idle experts", "one takes all"])
def test_bfloat16_has_the_same_bits_with_any_number_of_threads(kind: str) -> None:
    """Rows, weights and their gradients of several experts are on their way at once, in memory that they share."""
    ids, given, n_threads = ids_of(kind, 700, 2, 9), inputs(700, 2, 9, 64, 96, torch.bfloat16), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3, 2):
            torch.set_num_threads(n)
            found.append(results(sparse_ffn_training, ids, given))
    finally:
        torch.set_num_threads(n_threads)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_frozen_weights_get_no_gradient() -> None:
    x, weights, gate_up, down, grad = inputs(5, 2, 3, 4, 6)
    ids = ids_of("random", 5, 2, 3)
    x.requires_grad_()
    sparse_ffn_training(x, ids, weights, gate_up, down).backward(grad)
    assert x.grad is not None and gate_up.grad is None and down.grad is None
    gate_up.requires_grad_()
    sparse_ffn_training(x.detach(), ids, weights, gate_up, down).backward(grad)
    assert gate_up.grad is not None and down.grad is None


def test_a_gradient_that_is_there_is_added_to_in_place() -> None:
    *given, grad = inputs(20, 2, 3, 8, 6, torch.float32)
    ids = ids_of("idle experts", 20, 2, 3)
    x, weights, gate_up, down = (torch.nn.Parameter(t) for t in given)
    run = lambda: sparse_ffn_training(x, ids, weights, gate_up, down)  # noqa: E731
    run().backward(grad)
    assert gate_up.grad is not None and down.grad is not None
    once, at = (gate_up.grad.clone(), down.grad.clone()), (gate_up.grad.data_ptr(), down.grad.data_ptr())
    run().backward(grad)
    assert (gate_up.grad.data_ptr(), down.grad.data_ptr()) == at
    for p, first in zip((gate_up, down), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * first)
    asked = torch.autograd.grad(run(), (gate_up, down), grad)  # must come back, and leave `.grad` alone
    for p, first, found in zip((gate_up, down), once, asked, strict=True):
        torch.testing.assert_close(p.grad, 2 * first)
        torch.testing.assert_close(found, first)


def test_a_hook_sees_the_whole_gradient() -> None:
    *given, grad = inputs(20, 2, 3, 8, 6, torch.float32)
    ids = ids_of("random", 20, 2, 3)
    x, weights, gate_up, down = (torch.nn.Parameter(t) for t in given)
    seen: list[Tensor] = []
    gate_up.register_hook(lambda g: seen.append(g.clone()))
    for _ in range(2):
        sparse_ffn_training(x, ids, weights, gate_up, down).backward(grad)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_types_that_differ_and_autocast_go_the_plain_way() -> None:
    x, weights, gate_up, down, _ = inputs(4, 2, 3, 8, 6, torch.float32)
    ids = ids_of("random", 4, 2, 3)
    expected = reference.sparse_ffn(x, ids, weights, gate_up, down)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_ffn_training(x, ids, weights, gate_up, down)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("kernels", OF_BF16)
def test_what_a_slice_writes_too_far_is_overwritten(kernels: str) -> None:
    """In 16 bits the slices of experts with 1, 2, 40, 0, 3 and 33 rows reach over several others'."""
    counts = [1, 2, 40, 0, 3, 33]
    ids = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))[:, None].int()
    given = inputs(len(ids), 1, 6, 16, 24, torch.bfloat16)
    given[1] = given[1].float()
    exact = results(reference.sparse_ffn, ids, [t.double() for t in given])
    with cpu.use(kernels):
        found = results(sparse_ffn_training, ids, given)
    for got, wanted in zip(found[3:], exact[3:], strict=True):
        for e in range(6):
            assert float((got[e].double() - wanted[e]).norm()) <= 0.01 * float(wanted[e].norm())
    for got, wanted in zip(found[:2], exact[:2], strict=True):
        assert float(((got.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 0.03
