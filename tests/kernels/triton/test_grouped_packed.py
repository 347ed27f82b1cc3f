"""Grouped products of packed weights in Triton against the weights they stand for, in float64."""

from typing import Any

import pytest
import torch

from coterie.kernels import reference, tiles
from coterie.kernels.packed import FP8, Layout, Packed
from coterie.kernels.tiles import Tile
from coterie.kernels.triton_grouped import down_product, gate_up_product, many
from coterie.kernels.triton_sort import combine, sort_pairs
from coterie.quant.formats import FORMATS, Format
from coterie.quant.round_to_nearest import round_to_nearest
from coterie.quant.tensor import unpack

LAYOUTS: dict[str, Format | None] = {
    name: FORMATS[name] for name in ("int8", "int6", "int5", "int4", "int3", "int2", "q4_1", "q5_0")
} | {"groups of 64": Format(4, group_units=2), "fp8": None}


def stack(format: Format | None, shape: tuple[int, int, int], device: torch.device) -> Packed:
    """Random weights of a format; None: fp8."""
    E, N, K = shape
    layout = FP8 if format is None else Layout(format.bits, format.unit, format.group, format.scales)
    found = Packed.empty(layout, shape, device)
    for e in range(E):
        w_NK = torch.randn(N, K) / K**0.5
        if format is None:
            found.put_fp8(e, 0, w_NK.to(device))
        else:
            codes = unpack(round_to_nearest(w_NK, format))
            found.put(e, 0, _on(codes, device))
    return found


def _on(codes: Any, device: torch.device) -> Any:
    names = ("u_NK", "scale", "offset", "sub_scale", "sub_offset")
    moved = {n: None if getattr(codes, n) is None else getattr(codes, n).to(device) for n in names}
    return type(codes)(**moved)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def case(format: Format | None, T: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    E, D, F = 2, 288, 32
    gate_up, down = stack(format, (E, 2 * F, D), device), stack(format, (E, D, F), device)
    ids = torch.randint(-1, E, (T, 2), dtype=torch.int32).to(device)
    x, weights = torch.randn(T, D).to(device, dtype), torch.rand(T, 2).to(device)
    plain = [torch.stack([p.numbers(e) for e in range(E)]).double() for p in (gate_up, down)]
    return (x, ids, weights, gate_up, down), reference.sparse_ffn(x.double(), ids, weights.double(), *plain)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_block_of_packed_experts(name: str, device: torch.device) -> None:
    torch.manual_seed(3)
    given, expected = case(LAYOUTS[name], 9, device, torch.float32)
    assert error(many(*given), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("swap", [True, False])
def test_weights_that_are_rounded_and_rows_of_several_tiles(
    swap: bool, dtype: torch.dtype, device: torch.device, is_card: bool
) -> None:
    torch.manual_seed(4)
    (x, ids, weights, gate_up, down), expected = case(FORMATS["int4"], 40, device, dtype)
    sorted_, tile = sort_pairs(ids, 2), Tile(16, 64, 32, warps=4, stages=2, swap=swap)
    h_NF = gate_up_product(x, sorted_, 2, gate_up, tile)
    got = combine(down_product(h_NF, sorted_, down, tile), sorted_, weights, dtype)
    assert error(got, expected) < (1e-2 if is_card else 2.5e-2)  # the interpreter cuts bfloat16 off


def test_so_many_rows_that_weights_are_made_plain_first(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MOST_PACKED", 2)
    monkeypatch.setattr("coterie.kernels.triton_grouped._PLAIN_BYTES", 1)  # one expert at a time
    torch.manual_seed(5)
    given, expected = case(FORMATS["int4"], 10, device, torch.float32)
    assert error(many(*given), expected) < 1e-6
