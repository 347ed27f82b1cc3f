"""Norms, sums and the router of the native kernels, on every instruction set."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import cpu, reference
from coterie.quant.formats import FORMATS
from coterie.quant.tensor import Codes, pack

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("D", [1, 8, 51, 256, 4099])
@pytest.mark.parametrize("scale", [1e-4, 3.0])
def test_rms_norm(isa: str, dtype: torch.dtype, D: int, scale: float) -> None:
    x, weight = (randn(9, D) * scale).to(dtype), (randn(D).abs() + 0.5).to(dtype)
    y = cpu.rms_norm(x, weight, 1e-5)
    steps = 4 if dtype == torch.float32 else 1
    expected = reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(y, expected, rtol=2 * steps * torch.finfo(dtype).eps, atol=1e-7)
    assert torch.equal(cpu.rms_norm(x[4:5], weight, 1e-5), y[4:5])


def test_rms_norm_with_a_weight_of_another_type(isa: str) -> None:
    x, weight = randn(3, 40), randn(40).bfloat16()
    torch.testing.assert_close(cpu.rms_norm(x, weight, 0.0), reference.rms_norm(x, weight.float(), 0.0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("F", [1, 37, 352])
def test_swiglu(isa: str, dtype: torch.dtype, F: int) -> None:
    x = (4 * randn(100, 2 * F)).to(dtype)
    y = cpu.swiglu(x)
    gate, up = x.double().chunk(2, -1)
    expected = functional.silu(gate) * up
    rtol = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=1e-7)
    assert torch.equal(cpu.swiglu(x[50:51]), y[50:51])


def test_swiglu_beyond_what_exp_can_hold(isa: str) -> None:
    gate = torch.tensor([[-3e38, -1e4, -90.0, 0.0, 90.0, 1e4, float("nan")]])
    y = cpu.swiglu(torch.cat((gate, torch.ones_like(gate)), 1))[0]
    torch.testing.assert_close(y[1:6], torch.tensor([0.0, 0, 0, 90, 1e4]))
    assert y[0].abs() < 10 and y[6].isnan()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("V", [1, 7, 255, 256, 1000, 32_003])
def test_argmax(isa: str, dtype: torch.dtype, V: int) -> None:
    """The largest number and its first place; negative rows, ties, infinite numbers and NaN as torch has them."""
    x = randn(6, V)
    x[1] -= 100
    x[2] = 3
    x[3, V // 2 :] = -float("inf")
    x[4] = -float("inf")
    x = x.to(dtype)
    values, ids = cpu.argmax(x)
    for t in range(6):
        at = (x[t] == x[t].max()).nonzero()[0].item()
        assert ids[t] == at and values[t] == x[t, at]
    assert all(torch.equal(a, b[5:]) for a, b in zip(cpu.argmax(x[5:]), (values, ids), strict=True))
    if V > 2:
        x[0, V // 3], x[0, V - 1] = float("nan"), float("inf")
        values, ids = cpu.argmax(x[:1])
        assert values[0].isnan() and ids[0] == V // 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [1, 15, 4096, 70_001])
def test_add(isa: str, dtype: torch.dtype, n: int) -> None:
    """Exactly torch's, which rounds once, to even."""
    a, b = (100 * randn(n)).to(dtype), randn(n, seed=1).to(dtype)
    assert torch.equal(cpu.add(a, b), a + b)


def test_rows_round_half_to_even_where_they_become_bytes(isa: str) -> None:
    """An identity matrix of 4 bits shows the bytes; the largest number is 127, so that they are the numbers rounded."""
    identity = pack(FORMATS["q4_0"], Codes(torch.eye(32, dtype=torch.uint8) + 8, torch.ones(32, 1).half()))
    halves = torch.arange(-15, 16) + 0.5
    x = torch.cat((torch.tensor([127.0]), halves))[None]
    assert torch.equal(cpu.linear(x, cpu.matrix_handle([identity]), 32), x.round())


def test_add_beyond_the_numbers(isa: str) -> None:
    for dtype in TYPES:
        largest, infinite = torch.finfo(dtype).max, float("inf")
        a = torch.tensor([largest, -largest, infinite, infinite, float("nan"), -0.0, 1.0, 2.0] * 3).to(dtype)
        b = torch.tensor([largest, -largest, 1.0, -infinite, 1.0, -0.0, -1.0, 0.5] * 3).to(dtype)
        assert torch.equal(cpu.add(a, b).nan_to_num(7.0), (a + b).nan_to_num(7.0))


def test_the_smallest_numbers_are_not_flushed(isa: str) -> None:
    a = torch.arange(-40, 40).half() * 6e-8
    assert torch.equal(cpu.add(a, torch.zeros_like(a)), a) and a.count_nonzero() > 70


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("D", "E", "K"), [(64, 8, 2), (51, 5, 1), (256, 60, 6), (1, 3, 3)])
def test_route(isa: str, dtype: torch.dtype, renormalise: bool, D: int, E: int, K: int) -> None:
    x, weight = randn(17, D).to(dtype), randn(E, D, seed=1)
    ids, weights, logits = cpu.route(x, weight, K, renormalise)
    exact = x.double() @ weight.double().T
    assert (logits.double() - exact).abs().max() <= 1e-6 * exact.abs().max()
    expected_ids, expected_weights, _ = reference.route(x, weight, K, renormalise)
    assert ids.dtype == torch.int32 and torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)
    for alone, whole in zip(cpu.route(x[5:6], weight, K, renormalise), (ids, weights, logits), strict=True):
        assert torch.equal(alone, whole[5:6])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_route_that_some_rows_change(isa: str, dtype: torch.dtype, renormalise: bool) -> None:
    """As the reference says; and rows without a change keep their bits."""
    x, weight = randn(9, 51).to(dtype), randn(7, 51, seed=1)
    bias_NE = torch.tensor([[0, -torch.inf, 0, 0, 3, 0, 0], [0.0] * 7, [1, 2, -torch.inf, -torch.inf, 0, 0, -9]])
    of_row_T = torch.tensor([-1, 0, 1, 2, -1, 2, 0, -1, 1], dtype=torch.int32)
    edits = reference.RouteEdits(of_row_T, bias_NE, torch.tensor([2, 5, 1], dtype=torch.int32), 5)
    ids, weights, logits = cpu.route(x, weight, 2, renormalise, edits)
    expected_ids, expected_weights, _ = reference.edited_route(x, weight, 2, renormalise, edits)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)
    plain_ids, plain_weights, plain_logits = cpu.route(x, weight, 2, renormalise)
    assert torch.equal(logits, plain_logits), "the logits stay raw"
    rows = of_row_T < 0
    assert torch.equal(ids[rows, :2], plain_ids[rows]) and torch.equal(weights[rows, :2], plain_weights[rows])
    assert (ids[rows, 2:] == -1).all() and not weights[rows, 2:].any()
    assert not (ids[of_row_T == 0] == 1).any() and ((ids[of_row_T == 2] >= 0).sum(1) == 1).all()


def test_among_equal_logits_the_lowest_id_is_first(isa: str) -> None:
    """Identity rows: the logits are x."""
    weight = torch.eye(6)
    x = torch.tensor([[1.0, 3, 2, 3, 2, 3], [0, 0, 0, 0, 0, 0], [-1, -2, -1, -2, -1, -2], [-0.0, 0, -0.0, 0, 0, 0]])
    ids, weights, _ = cpu.route(x, weight, 4, True)
    assert ids.tolist() == [[1, 3, 5, 2], [0, 1, 2, 3], [0, 2, 4, 1], [0, 1, 2, 3]]
    assert weights[1].tolist() == [0.25] * 4


@pytest.mark.parametrize("renormalise", [True, False])
def test_large_logits_give_weights_all_the_same(isa: str, renormalise: bool) -> None:
    """The softmax subtracts the largest: exp of what is left neither overflows nor divides nothing by nothing."""
    x = torch.tensor([[3e38, 1.0, -3e38], [1e30, 1e30, 0], [-3e38, -3e38, -3e38]])
    ids, weights, logits = cpu.route(x, torch.eye(3), 2, renormalise)
    assert torch.equal(logits, x)
    assert ids.tolist() == [[0, 1], [0, 1], [0, 1]]
    third = 0.5 if renormalise else 1 / 3
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0], [0.5, 0.5], [third, third]]))


def test_a_row_that_is_no_number_still_has_experts(isa: str) -> None:
    """Ids stay within range, each once: they are addresses to whatever comes next."""
    x = torch.full((2, 4), float("nan"))
    ids, _, _ = cpu.route(x, randn(6, 4), 3, True)
    assert [sorted(set(row)) for row in ids.tolist()] == [[0, 1, 2]] * 2
