"""Blockwise causal attention against its twin in `reference`, values and gradients."""

import pytest
import torch
from torch import Tensor

from coterie.kernels import attention, causal, reference


def results(run: object, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = run(*leaves, None, True) if run is not causal.causal_attention else run(*leaves)  # type: ignore[operator]
    y.backward(grad)
    return [y.detach(), *(t.grad for t in leaves)]  # type: ignore[list-item]


def inputs(B: int, S: int, H: int, G: int, P: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(B * S + H)
    q, k, v, grad = (torch.randn(B, S, n, P, generator=generator).to(dtype) for n in (H, G, G, H))
    return [q, k, v], grad


@pytest.mark.parametrize(
    ("S", "H", "G"), [(1, 4, 2), (5, 6, 1), (127, 2, 2), (128, 4, 2), (129, 4, 2), (300, 6, 1), (2100, 2, 1)]
)
def test_as_the_reference_in_double_precision(S: int, H: int, G: int) -> None:
    """2,100 queries are 16 blocks of 132, of which the last is not full."""
    given, grad = inputs(1 if S > 1000 else 2, S, H, G, 8, torch.float64)
    expected = results(reference.attention, given, grad)
    for a, b in zip(results(causal.causal_attention, given, grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_bfloat16_training_takes_it_and_stays_as_near_to_float32_as_the_reference() -> None:
    given, grad = inputs(2, 200, 4, 2, 64, torch.bfloat16)
    exact = results(reference.attention, [t.float() for t in given], grad.float())
    taken, plain = (results(run, given, grad) for run in (attention, reference.attention))
    for a, b, c in zip(taken, plain, exact, strict=True):
        error, allowed = (float((t.float() - c).norm() / c.norm()) for t in (a, b))
        assert error < 2 * allowed + 1e-3 and error < 0.01
    own = results(causal.causal_attention, given, grad)
    assert all(torch.equal(a, b) for a, b in zip(taken, own, strict=True))


@pytest.mark.parametrize(("S", "H", "G"), [(1, 4, 2), (7, 6, 1), (64, 2, 2), (65, 4, 2), (200, 4, 2)])
def test_without_gradients(S: int, H: int, G: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerances = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    for most in (1 << 22, 3000):  # the second makes blocks of a few queries
        monkeypatch.setattr(causal, "_MOST_SCORES", most)
        for dtype, tolerance in tolerances.items():
            (q, k, v), _ = inputs(2, S, H, G, 16, dtype)
            y = causal.causal_attention_without_gradients(q, k, v)
            expected = reference.attention(q.double(), k.double(), v.double(), None, True)
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradcheck() -> None:
    given, _ = inputs(1, 131, 2, 1, 2, torch.float64)
    leaves = [t[:, :131].requires_grad_() for t in given]
    assert torch.autograd.gradcheck(causal.causal_attention, leaves, fast_mode=True)


def test_later_tokens_change_nothing() -> None:
    (q, k, v), _ = inputs(1, 260, 2, 1, 8, torch.float64)
    before = causal.causal_attention(q, k, v)
    k[:, 200:], v[:, 200:] = 1e3, float("nan")
    after = causal.causal_attention(q, k, v)
    assert torch.equal(before[:, :128], after[:, :128])
    torch.testing.assert_close(before[:, :200], reference.attention(q, k[:, :], v.nan_to_num(), None, True)[:, :200])
