"""Every operation for inference in plain torch against its slow twin."""

import pytest
import torch

from coterie.kernels import inference, reference, rms_norm


def row(width: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    x, weight = torch.randn(1, width, generator=generator) * scale, torch.rand(width, generator=generator) + 0.5
    return x.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("width", [1, 8, 255, 4096])
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 4), (torch.bfloat16, 1), (torch.float16, 1)])
@pytest.mark.parametrize("scale", [1e-4, 3.0])
def test_rms_norm_equals_the_reference(width: int, dtype: torch.dtype, steps: int, scale: float) -> None:
    """Within `steps` roundings of the dtype: the sums run in another order."""
    x, weight = row(width, dtype, scale)
    fast, slow = inference.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)
    assert fast.dtype == slow.dtype == dtype and fast.shape == slow.shape
    torch.testing.assert_close(fast, slow, rtol=2 * steps * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_are_taken_in_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows in blocks of two: the last block is short; and no row at all is no error."""
    monkeypatch.setattr(inference, "_BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    x, out = torch.randn(7, 32, generator=generator).to(dtype), torch.randn(7, 3, 32, generator=generator).to(dtype)
    weight, weights_TK = torch.rand(32, generator=generator).to(dtype), torch.rand(7, 3, generator=generator)
    eps = 4 * torch.finfo(dtype).eps
    for n in (7, 1, 0):
        fast, slow = (k.rms_norm(x[:n], weight, 1e-5) for k in (inference, reference))
        torch.testing.assert_close(fast, slow, rtol=eps, atol=1e-7)
        fast, slow = (k.combine(out[:n], weights_TK[:n]) for k in (inference, reference))
        assert torch.equal(fast, slow) and fast.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_ffn_equals_the_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (torch.randn(*s, generator=generator).to(dtype) for s in ((5, 16), (24, 16), (16, 12)))
    before = x.clone()
    assert torch.equal(inference.gated_ffn(x, gate_up, down), reference.gated_ffn(x, gate_up, down))
    assert torch.equal(x, before)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert inference.rms_norm(torch.zeros(1, 4), torch.ones(4), 1e-5).tolist() == [[0.0] * 4]


def test_rms_norm_leaves_its_inputs_alone() -> None:
    x, weight = row(8, torch.float32)
    before = x.clone(), weight.clone()
    inference.rms_norm(x, weight, 1e-5)
    assert torch.equal(x, before[0]) and torch.equal(weight, before[1])


def test_one_row_with_gradients_takes_the_reference() -> None:
    x, weight = row(8, torch.float32)
    rms_norm(x.requires_grad_(), weight, 1e-5).sum().backward()
    assert x.grad is not None
