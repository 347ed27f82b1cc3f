"""What the encoders must reach: exact numbers where there are some, less error than a plain rounding, importance."""

import pytest
import torch
from torch import Tensor

from coterie.quant.formats import FORMATS, Format
from coterie.quant.hqq import half_quadratic
from coterie.quant.round_to_nearest import round_to_nearest

INTS = ("int8", "int6", "int5", "int4", "int3", "int2")
OTHERS = {
    "int4_64": Format(4, group_units=2),
    "int4_offset_64": Format(4, group_units=2, scales="f16_offset"),
    "int3_offset": Format(3, scales="f16_offset"),
    "int2_super": Format(2, 16, scales="super"),
}
ALL = {name: FORMATS[name] for name in (*INTS, "q4_0", "q4_1", "q3_k", "q5_k", "q6_k")} | OTHERS
METHODS = {"rtn": round_to_nearest, "hqq": half_quadratic}


def weights(N: int = 48, K: int = 352, seed: int = 0) -> Tensor:
    """Bell-shaped, rows of different sizes, one row and one stretch of zeros, an outlier."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(N, K, generator=g) * torch.logspace(-3, 0, N)[:, None]
    w[3], w[5, 64:128], w[7, 40] = 0, 0, 4.0
    return w


def error(w: Tensor, approx: Tensor, h_K: Tensor | float = 1.0) -> float:
    """Weighted, a row at a time as a share of it, so that small rows count."""
    rows = w.square().sum(1) > 0
    return float((((approx - w).square() * h_K).sum(1) / (w.square() * h_K).sum(1))[rows].mean())


def plain_rounding(w_NK: Tensor, format: Format) -> Tensor:
    """The textbook's: the largest weight of a group decides."""
    n = format.group
    groups = torch.nn.functional.pad(w_NK, (0, -w_NK.shape[1] % n)).unflatten(1, (-1, n))
    if format.zero:
        s = groups.abs().amax(-1, keepdim=True).clamp(min=1e-20) / (format.zero - 1)
        approx = (groups / s).round() * s
    else:
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        s = (high - low).clamp(min=1e-20) / ((1 << format.bits) - 1)
        approx = ((groups - low) / s).round() * s + low
    return approx.flatten(1)[:, : w_NK.shape[1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_the_error_is_below_that_of_plain_rounding(name: str, method: str) -> None:
    w, format = weights(), ALL[name]
    packed = METHODS[method](w, format)
    approx = packed.dequantise()
    assert packed.shape == w.shape and bool(approx.isfinite().all())
    slack = 1.05 if format.is_super else 1.0  # scales of 4 to 8 bits beside exact ones
    assert error(w, approx) <= slack * error(w, plain_rounding(w, format))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros(name: str, method: str) -> None:
    w = weights()
    approx = METHODS[method](w, ALL[name]).dequantise()
    assert not approx[3].any() and not approx[5, 64:128].any()
    assert not METHODS[method](torch.zeros(16, 64), ALL[name]).dequantise().any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INTS)
def test_weights_on_the_grid_come_back_exactly(name: str, method: str) -> None:
    """Values of the symmetric grid with a step of 1/8, both ends in use."""
    format = ALL[name]
    top = 1 << (format.bits - 1)
    u = torch.arange(16 * 64).view(16, 64) * 7 % (2 * top) - top
    u[:, ::16], u[:, 1::16] = -top, top - 1
    approx = METHODS[method](u / 8, format).dequantise()
    assert torch.allclose(approx, u / 8, atol=0.02 if format.is_super else 0)


@pytest.mark.parametrize("name", ["int6", "int5", "int4", "int3", "int2"])
def test_importance_moves_the_error_to_where_it_counts_less(name: str) -> None:
    w = weights(K=512)
    h = torch.where(torch.arange(512) % 3 == 0, 100.0, 1.0)
    with_h, without = (round_to_nearest(w, FORMATS[name], i).dequantise() for i in (h, None))
    assert error(w, with_h, h) < error(w, without, h)


def test_importance_of_zero_everywhere_is_none() -> None:
    approx = round_to_nearest(weights(), FORMATS["int4"], torch.zeros(352)).dequantise()
    assert bool(approx.isfinite().all())


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights()
    whole = round_to_nearest(w, FORMATS["int4"]).data
    monkeypatch.setattr("coterie.quant.round_to_nearest._PIECE", 1000)
    assert torch.equal(round_to_nearest(w, FORMATS["int4"]).data, whole)


def test_bfloat16_weights_are_taken_as_they_are() -> None:
    w = weights().bfloat16()
    assert torch.equal(round_to_nearest(w, FORMATS["int4"]).data, round_to_nearest(w.float(), FORMATS["int4"]).data)
