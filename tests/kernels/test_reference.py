"""The plain-torch kernels against the formulas written as loops."""

import math

import pytest
import torch
from torch import Tensor

from coterie.kernels import attention, gated_ffn, rms_norm, rotary_tables, rotate


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_rms_norm() -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(rms_norm(x, weight, 0.0), torch.tensor([[3, 8]]) / math.sqrt(12.5))
    low = rms_norm(x.bfloat16(), weight.bfloat16(), 1e-5)
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), rms_norm(x, weight, 1e-5), rtol=0.01)


def test_gated_ffn_puts_the_gate_rows_first() -> None:
    gate_up = torch.tensor([[2.0], [5.0]])  # gate = 2x, up = 5x
    y = gated_ffn(torch.tensor([[1.0]]), gate_up, torch.tensor([[3.0]]))
    assert y.item() == pytest.approx(3 * 5 * 2 / (1 + math.exp(-2)))


def test_rotary_half_split() -> None:
    """Pair (i, i + P/2) turns by position · theta^(-2i/P)."""
    P, theta, position = 6, 100.0, 5
    x = randn(1, 1, P)
    cos, sin = rotary_tables(torch.tensor([position]), P, theta, torch.float32)
    y = rotate(x, cos, sin)
    for i in range(P // 2):
        angle = position * theta ** (-2 * i / P)
        a, b = x[0, 0, i].item(), x[0, 0, i + P // 2].item()
        assert y[0, 0, i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
        assert y[0, 0, i + P // 2].item() == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-5)


def test_rotary_of_interleaved_rows_is_that_of_permuted_ones() -> None:
    """Mistral's own files pair neighbours (2i, 2i + 1); moving them to (i, i + P/2) is what a loader does."""
    P, theta, position = 8, 10.0, 3
    x = randn(P)
    pairs = torch.view_as_complex(x.view(P // 2, 2).contiguous())
    angle = position * theta ** (-torch.arange(0, P, 2) / P)
    turned = torch.view_as_real(pairs * torch.polar(torch.ones(P // 2), angle)).flatten()
    to_half_split = torch.arange(P).view(P // 2, 2).T.flatten()
    cos, sin = rotary_tables(torch.tensor([position]), P, theta, torch.float32)
    torch.testing.assert_close(rotate(x[to_half_split][None, None], cos, sin)[0, 0], turned[to_half_split])


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    B, S, H, P = q.shape
    y = torch.zeros_like(q)
    for b in range(B):
        for s in range(S):
            for h in range(H):
                g = h // (H // k.shape[2])
                seen = mask[b, s].nonzero().flatten().tolist()
                weights = torch.stack([q[b, s, h] @ k[b, c, g] / math.sqrt(P) for c in seen]).softmax(0)
                y[b, s, h] = sum(w * v[b, c, g] for w, c in zip(weights, seen, strict=True))
    return y


@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("S", [1, 3])
def test_attention_with_a_mask(H: int, G: int, S: int) -> None:
    B, C, P = 2, 5, 4
    q, k, v = randn(B, S, H, P), randn(B, C, G, P), randn(B, C, G, P) + 1
    mask = torch.rand(B, S, C, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[..., 0] = True
    torch.testing.assert_close(attention(q, k, v, mask, False), naive_attention(q, k, v, mask))
    everything = torch.ones(B, S, C, dtype=torch.bool)
    torch.testing.assert_close(attention(q, k, v, None, False), naive_attention(q, k, v, everything))


@pytest.mark.parametrize(("H", "G"), [(4, 2), (3, 3)])
@pytest.mark.parametrize("S", [1, 4])
def test_causal_attention(H: int, G: int, S: int) -> None:
    q, k, v = randn(2, S, H, 4), randn(2, S, G, 4), randn(2, S, G, 4) + 1
    mask = torch.ones(S, S, dtype=torch.bool).tril().expand(2, S, S)
    torch.testing.assert_close(attention(q, k, v, None, True), naive_attention(q, k, v, mask))
