"""Causal attention with gradients against the three steps it fuses, written in plain torch."""

import pytest
import torch
from torch import Tensor

from coterie.kernels import causal_self_attention, cpu, reference
from coterie.kernels.reference import rotary_tables, rotate

KERNELS = list(dict.fromkeys([cpu.names()[0], "reference"]))


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
    ("S", "H", "G"), [(1, 4, 2), (5, 6, 1), (127, 2, 2), (128, 4, 2), (129, 4, 2), (300, 6, 1), (2100, 2, 1)]
)
@pytest.mark.parametrize("has_documents", [False, True])
def test_values_and_gradients(S: int, H: int, G: int, has_documents: bool) -> None:
    """2,100 queries are 16 blocks of 132, of which the last is not full."""
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
