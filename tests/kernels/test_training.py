"""The native kernels of training against their twins in plain torch, in float64, on every instruction set here."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, reference, router_training, training, training_reference

NATIVE = [name for name in cpu.names() if name != "reference"]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of a result, of its largest number

pytestmark = pytest.mark.skipif(not NATIVE or not cpu.can_train(), reason="no native kernels of training")


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    with cpu.use(request.param):
        yield request.param


@pytest.fixture(params=BOUNDS, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(dtype)


def assert_near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == exact.shape
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(got.double(), exact.double(), rtol=0, atol=BOUNDS[dtype] * max(largest, 1e-3))


@pytest.mark.parametrize(("n", "F"), [(0, 5), (1, 1), (3, 16), (7, 37), (600, 70)])
def test_swiglu(n: int, F: int, native: str, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    h, grad, weights = random(n, 2 * F, dtype=dtype), random(n, F, dtype=dtype), random(n)
    if n > 1:
        weights[1] = 0.0
    results = []
    for operations, d in ((training, dtype), (training_reference, torch.float64)):
        dots = torch.empty(n, dtype=torch.float32 if operations is training else d)
        a, g, grad_h = torch.empty(n, F, dtype=d), grad.to(d, copy=True), torch.empty(n, 2 * F, dtype=d)
        operations.swiglu(h.to(d), a)
        operations.swiglu_backward_(h.to(d), weights.to(dots.dtype), g, grad_h, dots)
        results.append((a, g, grad_h, dots))
    for got, exact in zip(*results, strict=True):
        assert_near(got, exact, dtype)


@pytest.mark.parametrize("D", [1, 16, 37, 256])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_combine(D: int, is_weighted: bool, native: str, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    places, weights = torch.randint(-1, 9, (11, 3)), random(11, 3) if is_weighted else None
    rows = random(9, D, dtype=dtype)
    exact = training_reference.combine(rows.double(), places, None if weights is None else weights.double())
    assert_near(training.combine(rows, places, weights), exact, dtype)


@pytest.mark.parametrize(("T", "E", "K"), [(0, 4, 2), (1, 1, 1), (2, 2, 2), (50, 6, 3), (400, 3, 1)])
def test_pairs(T: int, E: int, K: int, native: str) -> None:
    ids = torch.randint(-1, E, (T, K), dtype=torch.int32)
    got, expected = training.sort_pairs(ids, E), training_reference.sort_pairs(ids, E)
    assert got.counts == expected.counts
    assert all(torch.equal(a, b) for a, b in zip(got[:3], expected[:3], strict=True))


def test_the_worked_example_of_pairs() -> None:
    pairs = training_reference.sort_pairs(torch.tensor([[1, 0], [1, -1]], dtype=torch.int32), 2)
    assert pairs.pair_N.tolist() == [1, 0, 2] and pairs.token_N.tolist() == [0, 0, 1]
    assert pairs.place_TK.tolist() == [[1, 0], [2, -1]] and pairs.counts == [1, 2]


@pytest.mark.parametrize(("T", "D"), [(0, 8), (1, 3), (5, 37), (200, 64)])
def test_rms_norm(T: int, D: int, native: str, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    x, weight, grad = random(T, D, dtype=dtype), random(D, dtype=dtype), random(T, D, dtype=dtype)
    y, inverse = training.rms_norm(x, weight, 1e-5)
    exact_y, exact_inverse = training_reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert_near(y, exact_y, dtype)
    assert_near(inverse, exact_inverse, torch.float32)
    exact = training_reference.rms_norm_backward(x.double(), weight.double(), exact_inverse, grad.double())
    for got, wanted in zip(training.rms_norm_backward(x, weight, inverse, grad), exact, strict=True):
        assert_near(got, wanted, dtype)


@pytest.mark.parametrize(("n", "V"), [(1, 1), (4, 5), (3, 16), (9, 1000)])
def test_cross_entropy(n: int, V: int, native: str, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    logits, targets = 4 * random(n, V, dtype=dtype) + 100, torch.randint(-1, V, (n,))
    exact = logits.double()
    losses, exact_losses = training.cross_entropy_(logits, targets), training_reference.cross_entropy_(exact, targets)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=1e-5)
    assert_near(logits, exact, dtype)


@pytest.mark.parametrize("n", [1, 16, 40_001])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adam(n: int, grad_dtype: torch.dtype, native: str, random: Callable[..., Tensor]) -> None:
    settings = training.AdamSettings(0.3, 0.99, 0.9, 0.95, 1e-3, 0.2, 1e-8)
    state = [random(n), random(n), random(n).square()]
    wide, grad, out = [t.double() for t in state], random(n, dtype=grad_dtype), torch.empty(n, dtype=torch.bfloat16)
    training.adam_(state[0], grad, state[1], state[2], out, settings)
    training_reference.adam_(wide[0], grad, wide[1], wide[2], None, settings)
    for got, exact in zip(state, wide, strict=True):
        assert_near(got, exact, torch.float32)
    assert torch.equal(out, state[0].bfloat16())
    assert training.square_sum(grad) == pytest.approx(training_reference.square_sum(grad), rel=1e-5)


def test_the_same_bits_with_any_number_of_threads(native: str, random: Callable[..., Tensor]) -> None:
    x, weight, grad = random(3000, 40), random(40), random(3000, 40)
    found, before = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        try:
            y, inverse = training.rms_norm(x, weight, 1e-5)
            found.append([y, *training.rms_norm_backward(x, weight, inverse, grad)])
            found[-1].append(torch.tensor(training.square_sum(x)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_without_a_team_its_own_threads_work(
    native: str, monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor]
) -> None:
    x, weight = random(3000, 40), random(40)
    expected, _ = training.rms_norm(x, weight, 1e-5)
    monkeypatch.setattr(training, "_team", lambda: 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(training.rms_norm(x, weight, 1e-5)[0], expected)
    finally:
        torch.set_num_threads(before)


def test_what_is_left_to_torch() -> None:
    assert training.is_usable(torch.ones(1)) and not training.is_usable(torch.ones(1, dtype=torch.float64))
    assert not training.is_usable(torch.ones(1), torch.ones(1, device="meta"))
    with torch.autocast("cpu"):
        assert not training.is_usable(torch.ones(1))
    with cpu.use("reference"):
        assert training.operations(torch.ones(1)) is training_reference


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(
    ("T", "D", "E", "K"), [(0, 8, 2, 1), (1, 16, 3, 2), (7, 37, 5, 5), (300, 64, 8, 2), (9, 5, 64, 0)]
)
def test_router(
    T: int, D: int, E: int, K: int, renormalise: bool, native: str, dtype: torch.dtype, random: Callable[..., Tensor]
) -> None:
    x, weight, grads = random(T, D, dtype=dtype), random(E, D) / D**0.5, (random(T, K), random(T, E))
    found = []
    for wide in (False, True):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (x, weight)]
        if wide:
            ids, weights, logits = reference.route(*leaves, K, renormalise)
        else:
            ids, weights, logits = router_training.route(*leaves, K, renormalise, training)
        torch.autograd.backward((weights, logits), [g.to(logits) for g in grads])
        found.append((ids, weights.detach(), logits.detach(), *(leaf.grad for leaf in leaves)))
    assert torch.equal(found[0][0], found[1][0])
    kinds = (torch.float32, torch.float32, dtype, torch.float32)
    for got, exact, kind in zip(found[0][1:], found[1][1:], kinds, strict=True):
        assert got is not None and exact is not None
        assert_near(got, exact, kind)


def test_the_gradient_of_the_router_does_not_depend_on_the_threads(native: str, random: Callable[..., Tensor]) -> None:
    x, weight, grad = random(5000, 24), random(8, 24), random(5000, 8)
    found, before = [], torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(training.route_backward(x, weight, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
