"""Causal attention with gradients against the three steps it fuses, written in plain torch."""

import pytest
import torch
from torch import Tensor

from coterie.kernels import causal_self_attention, cpu, reference, training
from coterie.kernels.reference import rotary_tables, rotate

KERNELS = cpu.names()
NATIVE = KERNELS[:-1] if cpu.can_train() else []


def plain(qkv: Tensor, rotary: tuple[Tensor, Tensor], B: int, G: int, documents: Tensor | None = None) -> Tensor:
    T, n, P = qkv.shape
    q, k, v = torch.split(qkv, [n - 2 * G, G, G], 1)
    q, k = (rotate(t, *(x.to(t.dtype) for x in rotary)) for t in (q, k))
    S = T // B
    visible = torch.ones(S, S, dtype=torch.bool).tril().expand(B, S, S)
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    q, k, v = (t.reshape(B, S, -1, P) for t in (q, k, v))
    return reference.attention(q, k, v, visible, False).reshape(T, -1)


def results(run: object, qkv: Tensor, grad: Tensor, *rest: object) -> list[Tensor]:
    leaf = qkv.detach().clone().requires_grad_()
    y = run(leaf, *rest)  # type: ignore[operator]
    y.backward(grad)
    assert leaf.grad is not None
    return [y.detach(), leaf.grad]


def inputs(B: int, S: int, H: int, G: int, P: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(B * S + H)
    qkv, grad = (torch.randn(B * S, *shape, generator=g, dtype=torch.float64) for shape in ((H + 2 * G, P), (H * P,)))
    return qkv, grad, rotary_tables(torch.arange(S).repeat(B), P, 1e4, torch.float64)


def some_documents(B: int, S: int) -> Tensor:
    """Runs of any length, numbered anyhow; one document comes back after another."""
    g = torch.Generator().manual_seed(S)
    return (torch.rand(B, S, generator=g) < 0.05).cumsum(1) % 4 * 1_000_003 - 7


@pytest.mark.parametrize(
    ("S", "H", "G"),
    [(1, 4, 2), (7, 6, 1), (64, 2, 2), (127, 2, 2), (128, 4, 2), (129, 4, 2), (300, 6, 1), (513, 3, 3), (2100, 2, 1)],
)
@pytest.mark.parametrize("has_documents", [False, True])
def test_values_and_gradients(S: int, H: int, G: int, has_documents: bool) -> None:
    """2,100 queries are 16 blocks of 132, of which the last is not full; natively 4 pieces, whose sums are added."""
    B = 1 if S > 1000 else 2
    qkv, grad, rotary = inputs(B, S, H, G, 8)
    documents = some_documents(B, S) if has_documents else None
    exact = results(plain, qkv, grad, rotary, B, G, documents)
    for got, wanted in zip(results(causal_self_attention, qkv, grad, rotary, B, G, documents), exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    for kernels in KERNELS:
        with cpu.use(kernels):
            found = results(causal_self_attention, qkv.float(), grad.float(), rotary, B, G, documents)
        for got, wanted in zip(found, exact, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_is_as_near_to_float64_as_its_rounding(kernels: str) -> None:
    qkv, grad, rotary = inputs(2, 200, 4, 2, 64)
    qkv, grad = qkv.bfloat16(), grad.bfloat16()
    exact = results(plain, qkv.double(), grad.double(), rotary, 2, 2)
    with cpu.use(kernels):
        for got, wanted in zip(results(causal_self_attention, qkv, grad, rotary, 2, 2), exact, strict=True):
            assert float((got.double() - wanted).norm() / wanted.norm()) < 0.015


@pytest.mark.parametrize("kernels", NATIVE)
@pytest.mark.parametrize("P", [2, 6, 16, 40, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_widths_of_heads_and_types(kernels: str, P: int, dtype: torch.dtype) -> None:
    bounds = {torch.float32: 3e-6, torch.bfloat16: 0.01, torch.float16: 1e-3}
    qkv, grad, rotary = inputs(2, 205, 6, 2, P)
    qkv, grad, documents = qkv.to(dtype), grad.to(dtype), some_documents(2, 205)
    exact = results(plain, qkv.double(), grad.double(), rotary, 2, 2, documents)
    with cpu.use(kernels):
        assert training.has_causal_attention(qkv, 2)
        found = results(causal_self_attention, qkv, grad, rotary, 2, 2, documents)
    for got, wanted in zip(found, exact, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < bounds[dtype]


@pytest.mark.parametrize("kernels", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "S", "G"), [(3, 70, 2), (1, 1100, 1)])
def test_the_same_bits_with_any_number_of_threads(kernels: str, dtype: torch.dtype, B: int, S: int, G: int) -> None:
    qkv, grad, rotary = inputs(B, S, 2 * G, G, 16)
    qkv, grad = qkv.to(dtype), grad.to(dtype)
    found, before = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        try:
            with cpu.use(kernels):
                found.append(results(causal_self_attention, qkv, grad, rotary, B, G))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(not NATIVE, reason="no native kernels of training")
@pytest.mark.parametrize("kernels", NATIVE)
def test_large_scores_and_bad_numbers(kernels: str) -> None:
    """Scores of many thousands are one key's; a NaN stays one, in its own sequence."""
    qkv, grad, rotary = (x.float() if isinstance(x, Tensor) else x for x in inputs(2, 250, 2, 1, 8))
    qkv[:, :3] *= 100.0
    exact = results(plain, qkv.double(), grad.double(), rotary, 2, 1)
    with cpu.use(kernels):
        for got, wanted in zip(results(causal_self_attention, qkv, grad, rotary, 2, 1), exact, strict=True):
            assert float((got.double() - wanted).norm() / wanted.norm()) < 1e-2
        qkv[20, 0, 0] = torch.nan
        y, grad_qkv = results(causal_self_attention, qkv, grad, rotary, 2, 1)
    assert y[20].isnan().any() and not y[:20].isnan().any() and grad_qkv[20].isnan().any()
    assert not y[250:].isnan().any() and not grad_qkv[250:].isnan().any()


@pytest.mark.skipif(not NATIVE, reason="no native kernels of training")
def test_what_is_left_to_batched_products() -> None:
    qkv = torch.zeros(4, 6, 8)
    assert training.has_causal_attention(qkv, 2)
    assert not training.has_causal_attention(qkv.double(), 2) and not training.has_causal_attention(qkv[:0], 2)
    assert not training.has_causal_attention(torch.zeros(4, 3, 258), 1)


def test_gradcheck() -> None:
    qkv, _, rotary = inputs(1, 131, 2, 1, 2)
    documents = some_documents(1, 131)
    run = lambda x: causal_self_attention(x, rotary, 1, 1, documents)  # noqa: E731
    assert torch.autograd.gradcheck(run, [qkv.requires_grad_()], fast_mode=True)


@pytest.mark.parametrize("kernels", KERNELS)
def test_later_tokens_and_other_documents_change_nothing(kernels: str) -> None:
    qkv, _, rotary = inputs(1, 260, 2, 1, 8)
    qkv, documents = qkv.float(), (torch.arange(260) >= 100).long()[None]
    with cpu.use(kernels):
        before = causal_self_attention(qkv, rotary, 1, 1, documents)
        qkv[200:] = 1e3
        qkv[:100, :3] = 1e3  # keys that reach far beyond those that count
        after = causal_self_attention(qkv, rotary, 1, 1, documents)
    assert torch.equal(before[100:200], after[100:200])
