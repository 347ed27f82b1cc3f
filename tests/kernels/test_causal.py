"""Blockwise causal attention without gradients against its twin in `reference`."""

import pytest
import torch
from torch import Tensor

from coterie.kernels import causal, reference


def inputs(B: int, S: int, H: int, G: int, P: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(B * S + H)
    return [torch.randn(B, S, n, P, generator=generator).to(dtype) for n in (H, G, G)]


@pytest.mark.parametrize(("S", "H", "G"), [(1, 4, 2), (7, 6, 1), (64, 2, 2), (65, 4, 2), (200, 4, 2)])
def test_without_gradients(S: int, H: int, G: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerances = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    for most in (1 << 22, 3000):  # the second makes blocks of a few queries
        monkeypatch.setattr(causal, "_MOST_SCORES", most)
        for dtype, tolerance in tolerances.items():
            q, k, v = inputs(2, S, H, G, 16, dtype)
            y = causal.causal_attention_without_gradients(q, k, v)
            expected = reference.attention(q.double(), k.double(), v.double(), None, True)
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
