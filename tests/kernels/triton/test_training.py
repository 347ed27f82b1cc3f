"""The kernels of training on a card against their specification in torch, and the sparse block against autograd's."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import (
    gpu_training,
    reference,
    sparse_ffn_training,
    sparse_training,
    training,
    training_reference,
    triton_heads,
    triton_training,
)
from coterie.kernels.gpu_choice import interpreted

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _interpreted(is_card: bool) -> Iterator[None]:
    with nullcontext() if is_card else interpreted():
        yield


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def random(device: torch.device) -> Callable[..., Tensor]:
    g = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=g).to(device, dtype)


def assert_near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """By norm; a NaN is never near."""
    assert got.shape == exact.shape
    error = (got.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-3)
    assert error <= TOLERANCE[dtype], float(error)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated without a value holds NaN: whatever is not written shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty
    poison = lambda t: t.fill_(torch.nan if t.is_floating_point() else -7)  # noqa: E731
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))


def test_which_kernels_are_taken(random: Callable[..., Tensor]) -> None:
    assert training.operations(random(2, 2)) is triton_training
    assert training.operations(random(2, 2).double()) is training_reference


@pytest.mark.parametrize(("T", "D"), [(1, 3), (5, 37), (50, 64)])
def test_rms_norm(T: int, D: int, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    x, weight, grad = random(T, D, dtype=dtype), random(D, dtype=dtype), random(T, D, dtype=dtype)
    y, inverse = triton_training.rms_norm(x, weight, 1e-5)
    exact_y, exact_inverse = training_reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert_near(y, exact_y, dtype)
    assert_near(inverse, exact_inverse, torch.float32)
    exact = training_reference.rms_norm_backward(x.double(), weight.double(), exact_inverse, grad.double())
    for got, wanted in zip(triton_training.rms_norm_backward(x, weight, inverse, grad), exact, strict=True):
        assert_near(got, wanted, dtype)


@pytest.mark.parametrize(("n", "end", "F"), [(1, 1, 1), (7, 7, 37), (9, 4, 1100)])
def test_swiglu(
    n: int, end: int, F: int, dtype: torch.dtype, random: Callable[..., Tensor], device: torch.device
) -> None:
    h, grad, weights = random(n, 2 * F, dtype=dtype), random(n, F, dtype=dtype), random(n)
    weights[0] = 0.0
    ends = torch.tensor([end], dtype=torch.int32, device=device)
    a, g, grad_h, dots = torch.empty_like(grad), grad.clone(), torch.empty_like(h), torch.empty_like(weights)
    triton_training.swiglu(h, a, ends)
    triton_training.swiglu_backward_(h, weights, g, grad_h, dots, ends)
    wide = [t[:end].double() for t in (h, grad, weights)]
    exact = [torch.empty_like(t) for t in (wide[1], wide[0], wide[2])]
    training_reference.swiglu(wide[0], exact[0])
    assert_near(a[:end], exact[0], dtype)
    training_reference.swiglu_backward_(wide[0], wide[2], wide[1], exact[1], exact[2])
    for got, wanted in zip((g, grad_h, dots), (wide[1], exact[1], exact[2]), strict=True):
        assert_near(got[:end], wanted, dtype)
    assert torch.equal(dots[end:], torch.zeros_like(dots[end:])) and torch.equal(g[end:], grad[end:])


@pytest.mark.parametrize("D", [1, 37, 2100])
def test_gather(D: int, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    x, pairs = random(5, D, dtype=dtype), torch.tensor([14, 0, 3, 3, 7], device=random(1).device)
    assert torch.equal(triton_training.gather(x, pairs, 3), x[pairs // 3])


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("D", [1, 37, 2100])
def test_combine(D: int, is_weighted: bool, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    rows, weights = random(9, D, dtype=dtype), random(11, 3) if is_weighted else None
    places = torch.randint(-1, 9, (11, 3), device=rows.device)
    exact = training_reference.combine(rows.double(), places, None if weights is None else weights.double())
    assert_near(triton_training.combine(rows, places, weights), exact, dtype)


@pytest.mark.parametrize(("n", "V"), [(1, 1), (4, 5), (3, 1000), (2, 9001)])
def test_cross_entropy(n: int, V: int, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    logits = 4 * random(n, V, dtype=dtype) + 100
    targets = torch.randint(-1, V, (n,), device=logits.device)
    targets[-1] = -1 if n > 1 else 0
    exact = logits.double()
    losses, exact_losses = (
        triton_training.cross_entropy_(logits, targets),
        training_reference.cross_entropy_(exact, targets),
    )
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-4, atol=1e-4)
    assert_near(logits, exact, dtype)


def test_a_logit_that_is_not_a_number_makes_a_loss_that_is_none(random: Callable[..., Tensor]) -> None:
    for bad in (torch.nan, torch.inf):
        logits = random(2, 50)
        logits[0, 7] = bad
        losses = triton_training.cross_entropy_(logits, torch.tensor([3, 3], device=logits.device))
        assert not losses[0].isfinite() and losses[1].isfinite()


@pytest.mark.parametrize("n", [1, 5000])
@pytest.mark.parametrize("has_out", [True, False])
def test_adam(n: int, has_out: bool, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    settings = training.AdamSettings(0.3, 0.99, 0.9, 0.95, 1e-3, 0.2, 1e-8)
    state, grad = [random(n), random(n), random(n).square()], random(n, dtype=dtype)
    wide = [t.double() for t in state]
    out = torch.empty(n, dtype=torch.bfloat16, device=grad.device) if has_out else None
    triton_training.adam_(state[0], grad, state[1], state[2], out, settings)
    training_reference.adam_(wide[0], grad, wide[1], wide[2], None, settings)
    for got, exact in zip(state, wide, strict=True):
        assert_near(got, exact, torch.float32)
    if out is not None:
        assert_near(out, wide[0], torch.bfloat16)


@pytest.mark.parametrize(("H", "G", "P"), [(4, 2, 8), (3, 3, 6), (9, 1, 16)])
def test_heads_are_split_and_turned_and_put_together(
    H: int, G: int, P: int, dtype: torch.dtype, random: Callable[..., Tensor]
) -> None:
    T = 6
    qkv, grads = random(T, H + 2 * G, P, dtype=dtype), [random(T, n, P, dtype=dtype) for n in (H, G, G)]
    rotary = reference.rotary_tables(torch.arange(T, device=qkv.device) * 7, P, 1e4, torch.float32)
    leaf = qkv.double().requires_grad_()
    turned = reference.rotate(leaf, *(t.double() for t in rotary))
    exact = (turned[:, :H], turned[:, H : H + G], leaf[:, H + G :])
    for got, wanted in zip(triton_heads.split_heads(qkv, rotary, G), exact, strict=True):
        assert_near(got, wanted.detach(), dtype)
    torch.autograd.backward(exact, [g.double() for g in grads])
    got = triton_heads.split_heads_backward(rotary, (grads[0], grads[1], grads[2]))
    assert leaf.grad is not None
    assert_near(got, leaf.grad, dtype)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("H", "G"), [(4, 2), (2, 2)])
def test_self_attention(H: int, G: int, is_masked: bool, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    B, S, P = 2, 9, 8
    qkv, grad = random(B * S, H + 2 * G, P, dtype=dtype), random(B * S, H * P, dtype=dtype)
    rotary = reference.rotary_tables(torch.arange(S, device=qkv.device).repeat(B), P, 1e4, torch.float32)
    at = torch.arange(S, device=qkv.device)
    causal = at[:, None] >= at
    mask = (causal & (at[:, None] - at < 3)).expand(B, S, S) if is_masked else None
    leaf = qkv.detach().requires_grad_()
    y = gpu_training.self_attention(leaf, rotary, B, G, mask)
    y.backward(grad)
    exact_leaf = qkv.double().requires_grad_()
    turned = reference.rotate(exact_leaf, *(t.double() for t in rotary))
    q, k, v = (
        t.view(B, S, -1, P).transpose(1, 2) for t in (turned[:, :H], turned[:, H : H + G], exact_leaf[:, H + G :])
    )
    k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
    exact = functional.scaled_dot_product_attention(q, k, v, (causal if mask is None else mask[:, None]))
    exact = exact.transpose(1, 2).reshape(B * S, H * P)
    exact.backward(grad.double())
    assert leaf.grad is not None and exact_leaf.grad is not None
    assert_near(y.detach(), exact.detach(), dtype)
    assert_near(leaf.grad, exact_leaf.grad, dtype)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("T", "D", "E", "K"), [(1, 8, 4, 1), (70, 100, 8, 2), (90, 33, 20, 6)])
def test_the_router(
    T: int, D: int, E: int, K: int, renormalise: bool, dtype: torch.dtype, random: Callable[..., Tensor]
) -> None:
    x, weight, grads = random(T, D, dtype=dtype), random(E, D), (random(T, K), random(T, E))
    results = []
    for route, wide in ((gpu_training.route, False), (reference.route, True)):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (x, weight)]
        ids, weights, logits = route(leaves[0], leaves[1], K, renormalise)
        torch.autograd.backward((weights, logits), [g.to(logits) for g in grads])
        results.append((ids, weights, logits, leaves[0].grad, leaves[1].grad))
    assert torch.equal(results[0][0], results[1][0])
    for got, exact, kind in zip(
        results[0][1:], results[1][1:], (torch.float32, torch.float32, dtype, torch.float32), strict=True
    ):
        assert got is not None and exact is not None
        assert_near(got.detach(), exact.detach(), kind)


def ids_of(kind: str, T: int, K: int, E: int, device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(T + K)
    if kind == "one takes all":
        return torch.full((T, K), E - 1, dtype=torch.int32, device=device)
    if kind == "none":
        return torch.full((T, K), -1, dtype=torch.int32, device=device)
    low, high = {"random": (0, E), "some unused": (-1, E), "idle experts": (1, E - 1)}[kind]
    return torch.randint(low, high, (T, K), generator=g, dtype=torch.int32).to(device)


def test_the_worked_example_of_sorting(device: torch.device) -> None:
    found = gpu_training.sort(torch.tensor([[1, 0], [1, -1]], dtype=torch.int32, device=device), 3)
    assert found.pair_N.tolist() == [1, 0, 2, 3] and found.ends_E.tolist() == [1, 3, 3]
    assert found.place_TK.tolist() == [[1, 0], [2, -1]]


@pytest.mark.parametrize("kind", ["random", "some unused", "idle experts", "one takes all", "none"])
@pytest.mark.parametrize(("T", "K", "E", "D", "F"), [(1, 1, 4, 8, 16), (40, 2, 6, 16, 40)])
def test_the_sparse_block_and_its_gradients(
    kind: str, T: int, K: int, E: int, D: int, F: int, dtype: torch.dtype, random: Callable[..., Tensor],
    device: torch.device, is_card: bool,
) -> None:  # fmt: skip
    ids = ids_of(kind, T, K, E, device)
    given = [random(*shape, dtype=d) for shape, d in (
        ((T, D), dtype), ((T, K), torch.float32), ((E, 2 * F, D), dtype), ((E, D, F), dtype), ((T, D), dtype)
    )]  # fmt: skip
    given[1][0] = 0.0
    if dtype == torch.bfloat16 or not is_card:
        assert gpu_training.has_grouped_products(given[0], given[2], given[3])
    results = []
    for block, wide in ((sparse_ffn_training, False), (reference.sparse_ffn, True)):
        *leaves, grad = [(t.double() if wide else t).detach() for t in given]
        for leaf in leaves:
            leaf.requires_grad_()
        y = block(leaves[0], ids, *leaves[1:])
        y.backward(grad)
        results.append([y.detach(), *(t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves)])
    for got, exact in zip(*results, strict=True):
        assert_near(got, exact, dtype)


def test_frozen_experts_get_no_gradient(random: Callable[..., Tensor], device: torch.device) -> None:
    x, gate_up, down = (random(*shape, dtype=torch.bfloat16) for shape in ((5, 8), (3, 32, 8), (3, 8, 16)))
    x.requires_grad_()
    y = sparse_ffn_training(x, ids_of("random", 5, 2, 3, device), random(5, 2), gate_up, down)
    y.sum().backward()
    assert x.grad is not None and gate_up.grad is None and down.grad is None


def test_the_loop_takes_the_row_kernels_too(
    random: Callable[..., Tensor], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no grouped products: shapes that are not aligned."""
    x, gate_up, down = (random(*shape) for shape in ((9, 7), (3, 10, 7), (3, 7, 5)))
    ids, weights = ids_of("some unused", 9, 2, 3, device), random(9, 2)
    assert not gpu_training.has_grouped_products(x, gate_up, down)
    leaves = [t.detach().requires_grad_() for t in (x, weights, gate_up, down)]
    y = sparse_training.sparse_ffn_training(leaves[0], ids, *leaves[1:])
    assert_near(y.detach(), reference.sparse_ffn(x, ids, weights, gate_up, down), torch.float32)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in leaves)
