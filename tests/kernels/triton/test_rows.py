"""Norms, sums, SwiGLU and the router in Triton against their specification in torch."""

import pytest
import torch
from torch.nn import functional

from coterie.kernels import reference, triton_route, triton_rows

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def near(got: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[got.dtype]
    error = (got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return bool(error <= tolerance)


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@pytest.mark.parametrize(("T", "D"), [(1, 64), (3, 96), (5, 1000), (2, 4096)])
def test_a_norm_and_a_sum(T: int, D: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(T + D)
    x, y, weight = (torch.randn(*shape, device=device).to(dtype) for shape in ((T, D), (T, D), (D,)))
    assert near(triton_rows.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    total = x + y
    again = triton_rows.add(x, y)
    assert near(again, total)
    if x.is_cuda or dtype != torch.bfloat16:  # the interpreter cuts a bfloat16 off instead of rounding it
        assert torch.equal(again, total)


def test_a_norm_of_rows_that_lie_apart(device: torch.device) -> None:
    x, weight = torch.randn(4, 100, device=device)[:, :60], torch.randn(60, device=device)
    assert near(triton_rows.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize(("T", "F"), [(1, 7), (3, 1500)])
def test_swiglu(T: int, F: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(T, 2 * F, device=device).to(dtype)
    gate, up = x.double().chunk(2, -1)
    assert near(triton_rows.swiglu(x), functional.silu(gate) * up)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(
    ("T", "D", "E", "K"), [(1, 64, 8, 2), (5, 100, 3, 1), (70, 96, 8, 2), (90, 33, 20, 6), (2, 40, 64, 8)]
)
def test_the_router(
    T: int, D: int, E: int, K: int, renormalise: bool, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(T * E)
    x, weight = torch.randn(T, D, device=device).to(dtype), torch.randn(E, D, device=device)
    ids, weights, logits = triton_route.route(x, weight, K, renormalise)
    expected_ids, expected_weights, expected_logits = reference.route(x, weight, K, renormalise)
    assert near(logits, expected_logits)
    gap = expected_logits.sort(-1, descending=True).values
    clear = (
        (gap[:, :K] - gap[:, 1 : K + 1]).amin(-1) > 1e-4 if K < E else torch.ones(T, dtype=torch.bool, device=device)
    )
    assert ids.dtype == torch.int32 and torch.equal(ids[clear], expected_ids[clear])
    assert torch.allclose(weights[clear], expected_weights[clear], atol=1e-5)


@pytest.mark.parametrize("T", [3, 80])
def test_equal_logits_go_to_the_lowest_expert_and_nan_to_some_expert(T: int, device: torch.device) -> None:
    x, weight = torch.ones(T, 32, device=device), torch.zeros(5, 32, device=device)
    weight[3] = 1
    ids, weights, _ = triton_route.route(x, weight, 3, True)
    assert ids.tolist() == [[3, 0, 1]] * T and torch.allclose(weights.sum(-1), torch.ones(T, device=device))
    x[0, 0] = torch.nan
    ids, _, _ = triton_route.route(x, weight, 3, True)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 5 and ids[1:].tolist() == [[3, 0, 1]] * (T - 1)
