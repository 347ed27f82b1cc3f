"""The sparse block of a few tokens against a sum in float64, whatever its weights are kept as."""

import pytest
import torch
from torch.nn import functional

from coterie.kernels import triton_experts
from coterie.kernels.packed import Packed

from .test_packed import error, packed_stack

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def weights_of(
    kind: str, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor | Packed, torch.Tensor]:
    if kind != "plain":
        return packed_stack(kind, shape, device)
    w = (torch.randn(*shape, device=device) / shape[2] ** 0.5).to(dtype)
    return w, w


def expected_of(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    y = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for t, row in enumerate(ids.tolist()):
        for slot, e in enumerate(row):
            if e >= 0:
                gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
                y[t] += weights[t, slot].double() * (down[e].double() @ (functional.silu(gate) * up))
    return y


def block(
    kind: str, T: int, D: int, F: int, dtype: torch.dtype, device: torch.device, down_kind: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(T + D)
    E, K = 3, 2
    gate_up, gate_up_numbers = weights_of(kind, (E, 2 * F, D), dtype, device)
    down, down_numbers = weights_of(down_kind or kind, (E, D, F), dtype, device)
    x = torch.randn(T, D, device=device).to(dtype)
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)]).int().to(device)
    if T > 1:
        ids[1, 0] = -1  # and its output is not there to be read
    weights = torch.rand(T, K, device=device)
    poison = [torch.full((T * K, F), torch.nan, dtype=dtype, device=device) for _ in range(2)]
    del poison
    y = triton_experts.few(x, ids, weights, gate_up, down)
    return y, expected_of(x, ids, weights, gate_up_numbers, down_numbers)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("T", "D", "F"), [(1, 264, 10), (3, 40, 30)])
def test_plain_experts(T: int, D: int, F: int, dtype: torch.dtype, device: torch.device) -> None:
    y, expected = block("plain", T, D, F, dtype, device)
    assert y.dtype == dtype and error(y, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "kind", ["int8", "int6", "int5", "int4", "int3", "int2", "q4_0", "q4_1", "groups of 64", "fp8"]
)
def test_packed_experts(kind: str, device: torch.device, is_card: bool) -> None:
    shapes = [(1, 96, 256), (2, 512, 96), (4, 4096, 1792)] if is_card else [(2, 96, 32)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            y, expected = block(kind, *shape, dtype, device)
            assert error(y, expected) < TOLERANCE[dtype], (shape, dtype)


def test_packed_experts_of_whole_spans(device: torch.device) -> None:
    y, expected = block("int4", 1, 256, 32, torch.bfloat16, device)
    assert error(y, expected) < 1e-2


def test_formats_may_differ(device: torch.device) -> None:
    y, expected = block("q4_k", 2, 64, 32, torch.float32, device, down_kind="q6_k")
    assert error(y, expected) < 2e-6


def test_only_unused_slots_give_nothing(device: torch.device) -> None:
    x, ids = torch.randn(2, 32, device=device), torch.full((2, 2), -1, dtype=torch.int32, device=device)
    gate_up, down = torch.randn(3, 64, 32, device=device), torch.randn(3, 32, 32, device=device)
    weights = torch.zeros(2, 2, device=device)
    assert not triton_experts.few(x, ids, weights, gate_up, down).any()
    assert triton_experts.few(x[:0], ids[:0], weights[:0], gate_up, down).shape == (0, 32)


def test_a_row_does_not_depend_on_the_others(device: torch.device) -> None:
    gate_up, _ = packed_stack("int4", (3, 64, 64), device)
    down, _ = packed_stack("int4", (3, 64, 32), device)
    x, weights = torch.randn(4, 64, device=device), torch.rand(4, 2, device=device)
    ids = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 1]], dtype=torch.int32, device=device)
    together = triton_experts.few(x, ids, weights, gate_up, down)
    alone = [triton_experts.few(x[i : i + 1], ids[i : i + 1], weights[i : i + 1], gate_up, down) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
