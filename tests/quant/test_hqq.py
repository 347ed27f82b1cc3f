"""The proximal step against its definition, and what the method is for: groups with outliers."""

import torch

from coterie.quant.formats import Format
from coterie.quant.hqq import half_quadratic, shrink
from coterie.quant.round_to_nearest import round_to_nearest


def test_shrink_takes_more_off_small_errors_and_keeps_signs() -> None:
    """|e| - |e|^(-0.3) / beta where that is positive: at beta 4, of 1 is left 1 - 1/4, of 0.2 nothing."""
    e = torch.tensor([1.0, -1.0, 0.2, 0.0])
    assert torch.allclose(shrink(e, 4.0), torch.tensor([0.75, -0.75, 0.0, 0.0]))
    assert torch.allclose(shrink(e, 1e9), e, atol=1e-6)


def test_a_weight_that_fits_nowhere_does_not_decide() -> None:
    """Fifteen levels and one weight between two of them: the level stays, the odd one out is wrong."""
    w = (torch.arange(32) % 16 / 8).repeat(16, 1)
    w[:, 9] += 0.06
    rest = torch.arange(32) != 9
    format = Format(4, scales="f16_offset")
    off = {f: float((f(w, format).dequantise() - w)[:, rest].abs().mean()) for f in (half_quadratic, round_to_nearest)}
    assert off[half_quadratic] <= off[round_to_nearest]
