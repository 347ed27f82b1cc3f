import pytest
import torch
from torch import nn

from coterie.kernels import cpu
from coterie.train.optim import MasterOptimizer


def model(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


def one_step(m: nn.Linear, optimizer: MasterOptimizer, lr: float = 0.1, clip: float = 1e9) -> float:
    x = torch.arange(4, dtype=m.weight.dtype)
    m(x).square().sum().backward()
    return optimizer.step(lr, clip)


@pytest.mark.parametrize("kernels", dict.fromkeys([*cpu.names(), "reference"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_it_is_torch_adamw_with_decay_on_matrices_only(kernels: str, dtype: torch.dtype, clip: float) -> None:
    ours, theirs = model(dtype), model(dtype)
    optimizer = MasterOptimizer(ours, betas=(0.9, 0.95), weight_decay=0.5)
    groups = [{"params": [theirs.weight], "weight_decay": 0.5}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    for _ in range(4):
        with cpu.use(kernels):
            norm = one_step(ours, optimizer, clip=clip)
        reference.zero_grad()
        theirs(torch.arange(4, dtype=dtype)).square().sum().backward()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs.parameters(), clip)))
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_native_and_torch_steps_may_follow_each_other() -> None:
    ours, theirs = model(torch.bfloat16), model(torch.bfloat16)
    mixed, plain = (MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.5) for m in (ours, theirs))
    for kernels in (cpu.names()[0], "reference", cpu.names()[0]):
        with cpu.use(kernels):
            one_step(ours, mixed, 1e-2)
        with cpu.use("reference"):
            one_step(theirs, plain, 1e-2)
    for (name, got), wanted in zip(mixed.state().items(), plain.state().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-3, msg=name)


def test_gradients_of_micro_batches_are_added_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    m = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizer = MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.0)
    for size in (256.0, 1.0, 1.0):
        m.weight.grad = torch.full_like(m.weight, size)
        optimizer.collect()
        assert m.weight.grad is None
    assert optimizer.step(0.0, 1e9) == 258.0


def test_a_norm_that_is_not_finite_changes_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        m = model(dtype)
        before = m.weight.clone()
        optimizer = MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.1)
        m.weight.grad, m.bias.grad = torch.full_like(m.weight, torch.inf), torch.ones_like(m.bias)
        assert optimizer.step(0.1, 1.0) == torch.inf
        assert torch.equal(m.weight, before) and m.bias.grad is None


def test_bfloat16_weights_collect_steps_too_small_for_them() -> None:
    """Updates of 1e-4 beside a weight of 1 are lost in bfloat16; the float32 masters must keep their sum."""
    m = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(m.weight)
    optimizer = MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(100):
        m(torch.ones(1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1e-4, 1e9)
    assert abs(m.weight.item() - 0.99) < 0.004


def test_norm_is_the_one_before_clipping_and_the_gradients_are_gone() -> None:
    m = model(torch.float32)
    m.weight.grad, m.bias.grad = torch.full_like(m.weight, 3.0), torch.zeros_like(m.bias)
    norm = MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.0).step(0.0, 1.0)
    assert abs(norm - 3.0 * 12**0.5) < 1e-4
    assert m.weight.grad is None


def test_state_round_trip_goes_on_bit_for_bit() -> None:
    a, b = model(torch.bfloat16), model(torch.bfloat16)
    first, second = (MasterOptimizer(m, betas=(0.9, 0.95), weight_decay=0.1) for m in (a, b))
    one_step(a, first)
    second.load_state({k: v.clone() for k, v in first.state().items()})
    one_step(a, first)
    one_step(b, second)
    assert torch.equal(a.weight, b.weight)
