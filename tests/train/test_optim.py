import torch
from torch import nn

from coterie.train.optim import MasterOptimizer


def model(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


def one_step(m: nn.Linear, optimizer: MasterOptimizer, lr: float = 0.1, clip: float = 1e9) -> float:
    x = torch.arange(4, dtype=m.weight.dtype)
    m(x).square().sum().backward()
    return optimizer.step(lr, clip)


def test_float32_is_torch_adamw_with_decay_on_matrices_only() -> None:
    ours, theirs = model(torch.float32), model(torch.float32)
    optimizer = MasterOptimizer(ours, betas=(0.9, 0.95), weight_decay=0.5)
    groups = [{"params": [theirs.weight], "weight_decay": 0.5}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        one_step(ours, optimizer)
        reference.zero_grad()
        theirs(torch.arange(4.0)).square().sum().backward()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


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
