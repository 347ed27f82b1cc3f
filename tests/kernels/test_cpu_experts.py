"""The sparse block of the native kernels in one call, on every instruction set, against one expert at a time.

Shapes: T tokens, K slots, E experts, D model width, F expert width.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import cpu
from coterie.quant.formats import FORMATS, Format
from coterie.quant.mapped import MappedMatrix
from coterie.quant.tensor import PackedTensor, join_halves

TYPES = (torch.float32, torch.float16, torch.bfloat16)
E, NOBODY, POPULAR = 5, 3, 1  # nobody chose expert 3
Packer, Mapper, Rounder = Callable[..., PackedTensor], Callable[..., MappedMatrix], Callable[[Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def routed(T: int, K: int = 2) -> tuple[Tensor, Tensor]:
    """Ids with some of -1, none of NOBODY, and POPULAR in every full row; weights that do not add up to 1."""
    g = torch.Generator().manual_seed(T)
    others = torch.tensor([0, 2, 4])
    ids = others[torch.randint(0, 3, (T, K), generator=g)].to(torch.int32)
    ids[:, 0] = POPULAR
    if T > 2:
        ids[T // 2, 0], ids[T - 1] = -1, -1
    return ids, torch.rand(T, K, generator=g)


def mixed(x: Tensor, ids: Tensor, weights: Tensor, expert: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Σ weight · expert(x), float64."""
    y = torch.zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(ids.tolist()):
        for slot, e in enumerate(row):
            if e >= 0:
                y[t] += weights[t, slot].double() * expert(x[t : t + 1], e)[0]
    return y


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def row_errors(found: Tensor, expected: Tensor) -> Tensor:
    return (found.double() - expected).abs().amax(1) / expected.abs().max()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("weight_dtype", TYPES)
@pytest.mark.parametrize(("D", "F"), [(64, 96), (51, 37)])
@pytest.mark.parametrize("T", [1, 2, 33])
def test_plain(isa: str, dtype: torch.dtype, weight_dtype: torch.dtype, D: int, F: int, T: int) -> None:
    gate_up, down = (randn(E, 2 * F, D) / 8).to(weight_dtype), (randn(E, D, F) / 8).to(weight_dtype)
    x, (ids, weights) = randn(T, D).to(dtype), routed(T)
    y = cpu.plain_experts(x, ids, weights, gate_up, down)

    def expert(row: Tensor, e: int) -> Tensor:
        return swiglu(row.double() @ gate_up[e].double().T) @ down[e].double().T

    # in between, numbers are float32, or bf16 where the processor multiplies those
    tolerance = 4e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert y.dtype == dtype and row_errors(y, mixed(x, ids, weights, expert)).max() <= tolerance
    for t in range(0, T, 4):
        rows = slice(t, t + 1)
        assert torch.equal(cpu.plain_experts(x[rows], ids[rows], weights[rows], gate_up, down), y[rows])


@pytest.mark.parametrize("T", [1, 40])
def test_packed(isa: str, format: Format, T: int, random_packed: Packer, rounded_rows: Rounder) -> None:
    """A number between the two products may round to the neighbouring byte: few rows may differ, and by little."""
    D, F = 64, 96
    gate_up = [random_packed(format, 2 * F, D, e) for e in range(E)]
    down = [random_packed(format, D, F, 10 + e) for e in range(E)]
    x, (ids, weights) = randn(T, D), routed(T)
    handle = cpu.expert_handle(gate_up, down)
    y = cpu.experts(x, ids, weights, handle, F)

    def expert(row: Tensor, e: int) -> Tensor:
        hidden = swiglu(rounded_rows(row, format.bits) @ join_halves(gate_up[e].dequantise()).double().T)
        return rounded_rows(hidden.float(), format.bits) @ down[e].dequantise().double().T

    errors = row_errors(y, mixed(x, ids, weights, expert))
    typical = 5e-5 if format.bits == 8 else 2e-6  # beside 8 bits there are 256 times as many steps to fall between
    assert errors.median() <= typical and errors.max() <= 1e-2
    for rows in (slice(0, 1), slice(3, 5), slice(7, 25)):
        if rows.stop <= T:
            assert torch.equal(cpu.experts(x[rows], ids[rows], weights[rows], handle, F), y[rows])


def test_one_expert_with_all_rows(isa: str, random_packed: Packer) -> None:
    """And a second slot that is unused is as if it were not there."""
    D, F, T = 64, 32, 50
    gate_up = [random_packed(FORMATS["q4_0"], 2 * F, D, e) for e in range(2)]
    down = [random_packed(FORMATS["int6"], D, F, e) for e in range(2)]
    handle, x, weights = cpu.expert_handle(gate_up, down), randn(T, D), torch.rand(T, 2)
    one = torch.ones(T, 1, dtype=torch.int32)
    y = cpu.experts(x, one, weights[:, :1].contiguous(), handle, F)
    assert torch.equal(cpu.experts(x, torch.cat((one, -one), 1), weights, handle, F), y) and y.abs().min(1)[0].max() > 0


def test_nobody_chose_any(isa: str, random_packed: Packer) -> None:
    gate_up, down = random_packed(FORMATS["int4"], 64, 32), random_packed(FORMATS["int4"], 32, 32)
    handle = cpu.expert_handle([gate_up], [down])
    ids, weights = torch.full((3, 2), -1, dtype=torch.int32), torch.ones(3, 2)
    assert not cpu.experts(randn(3, 32), ids, weights, handle, 32).any()
    assert cpu.experts(randn(0, 32), ids[:0], weights[:0], handle, 32).shape == (0, 32)


def test_experts_of_different_formats(isa: str, random_packed: Packer) -> None:
    """One fell back to more bits, one could not be packed: each gives what it gives alone."""
    D, F, T = 64, 32, 9
    gate_up = [random_packed(FORMATS["int3"], 2 * F, D), random_packed(FORMATS["int8"], 2 * F, D), randn(2 * F, D)]
    down = [random_packed(FORMATS["int2"], D, F), randn(D, F).bfloat16(), random_packed(FORMATS["int4"], D, F)]
    x, ids = randn(T, D), (torch.arange(T * 2) % 3).view(T, 2).to(torch.int32)
    y = cpu.experts(x, ids, torch.ones(T, 2), cpu.expert_handle(gate_up, down), F)
    expected = torch.zeros(T, D)
    for slot in range(2):
        for e in range(3):
            alone = cpu.expert_handle(gate_up[e : e + 1], down[e : e + 1])
            own = torch.where(ids[:, slot : slot + 1] == e, 0, -1).to(torch.int32)
            expected += cpu.experts(x, own, torch.ones(T, 1), alone, F)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_experts_in_place_are_bitwise_the_interleaved_ones(isa: str, kind: str, random_mapped: Mapper) -> None:
    D, F, T = 256, 256, 21
    gate_up = [random_mapped(kind, 2 * F, D, half=True, seed=e) for e in range(E)]
    down = [random_mapped(kind, D, F, seed=20 + e) for e in range(E)]
    x, (ids, weights) = randn(T, D), routed(T)
    in_place = cpu.experts(x, ids, weights, cpu.expert_handle(gate_up, down), F)
    packed = [[m.interleaved()[0] for m in matrices] for matrices in (gate_up, down)]
    assert torch.equal(in_place, cpu.experts(x, ids, weights, cpu.expert_handle(*packed), F))
    rows = slice(2, 3)
    alone = cpu.experts(x[rows], ids[rows], weights[rows], cpu.expert_handle(gate_up, down), F)
    assert torch.equal(alone, in_place[rows])
