"""Packed stacks on a card: the layout's twin is exact, the kernels' tiles are its numbers, products are right."""

import pytest
import torch

from coterie.kernels import tiles, triton_linear, triton_packed
from coterie.kernels.packed import FP8, Layout, Packed
from coterie.quant.formats import FORMATS, Format
from coterie.quant.round_to_nearest import round_to_nearest
from coterie.quant.tensor import unpack

KINDS = ["int8", "int6", "int5", "int4", "int3", "int2", "q4_0", "q4_1", "q5_0", "q5_1", "q6_k"]
WIDE = Format(4, 32, 2, "f16_offset")  # groups of 64


def packed_stack(kind: str, shape: tuple[int, int, int], device: torch.device) -> tuple[Packed, torch.Tensor]:
    """A stack of random matrices, and the numbers that are packed."""
    E, N, K = shape
    if kind == "fp8":
        stack = Packed.empty(FP8, shape, device)
        for e in range(E):
            stack.put_fp8(e, 0, torch.randn(N, K, device=device))
        return stack, torch.stack([stack.numbers(e) for e in range(E)])
    format = WIDE if kind == "groups of 64" else FORMATS[kind]
    matrices = [round_to_nearest(torch.randn(N, K), format) for _ in range(E)]
    layout = Layout(format.bits, format.unit, format.group, format.scales, format.label)
    stack = Packed.empty(layout, shape, "cpu")
    for e, matrix in enumerate(matrices):
        stack.put(e, 0, unpack(matrix))
    moved = (None if t is None else t.to(device) for t in (stack.low, stack.scale, stack.high, stack.sub))
    numbers = torch.stack([matrix.dequantise() for matrix in matrices]).to(device)
    return Packed(layout, shape, *moved), numbers  # type: ignore[arg-type]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("K", [256, 544])
@pytest.mark.parametrize("kind", [*KINDS, "groups of 64"])
def test_every_number_is_that_of_the_packed_matrix(kind: str, K: int, device: torch.device) -> None:
    torch.manual_seed(K)
    stack, numbers = packed_stack(kind, (2, 48, K), device)
    assert torch.equal(torch.stack([stack.numbers(e) for e in range(2)]), numbers)
    assert torch.equal(stack.numbers(1, 16, 20), numbers[1, 16:36])
    out = torch.full((33, K), torch.nan, device=device)
    assert torch.equal(triton_packed.plain(stack, 1, 7, out), numbers[1, 7:40])


def test_fp8_keeps_a_scale_a_row(device: torch.device) -> None:
    w = torch.randn(40, 96, device=device) * torch.logspace(-6, 3, 40, device=device)[:, None]
    w[3] = 0
    stack = Packed.empty(FP8, (1, 40, 96), device)
    stack.put_fp8(0, 0, w)
    numbers = stack.numbers(0)
    assert not numbers[3].any() and error(numbers, w.double()) < 0.04
    assert bool(((numbers - w).abs().amax(1) <= w.abs().amax(1) / 24).all())
    assert torch.equal(triton_packed.plain(stack, 0, 0, torch.empty_like(w)), numbers)


@pytest.mark.parametrize("kind", ["int8", "q4_0", "int3"])
def test_rows_of_an_embedding(kind: str, device: torch.device) -> None:
    stack, numbers = packed_stack(kind, (1, 50, 288), device)
    ids = torch.tensor([3, 49, 0, 3], device=device)
    assert torch.equal(triton_packed.rows(stack, ids, torch.float32), numbers[0, ids])
    assert triton_packed.rows(stack, ids[:0], torch.float32).shape == (0, 288)


@pytest.mark.parametrize("T", [0, 2, 20, 70])
@pytest.mark.parametrize("kind", ["int8", "int4", "q6_k", "fp8"])
def test_a_product_of_any_number_of_rows(kind: str, T: int, device: torch.device, is_card: bool) -> None:
    torch.manual_seed(T)
    N, K = (1000, 4096) if is_card else (40, 288)
    stack, numbers = packed_stack(kind, (1, N, K), device)
    for dtype, most in ((torch.float32, 2e-6), (torch.bfloat16, 6e-3)):
        if dtype == torch.bfloat16 and not is_card and 2 < T <= 64:
            continue  # the interpreter has no tl.dot of bfloat16
        x = torch.randn(T, K, device=device).to(dtype)
        y = triton_linear.linear(x, stack)
        assert y.shape == (T, N) and y.dtype == dtype
        if T:
            assert error(y, x.double() @ numbers[0].double().T) < most


def test_a_card_of_little_shared_memory_gets_fewer_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages of 64 rows and weights of 8 bits are more than the 101,376 bytes that Ada's cards give a program."""

    class Kernel:
        def __getitem__(self, grid: object) -> object:
            return lambda *_, **options: stages.append(options["num_stages"])

    stages: list[int] = []
    monkeypatch.setattr(triton_linear, "_some_kernel", Kernel())
    stack = Packed.empty(Layout(8, 32, 32, "f16"), (1, 64, 256), "cpu")
    for shared in (232_448, 101_376):
        monkeypatch.setattr(tiles, "card_of", lambda device, n=shared: tiles.Card("a card", 100, n, False))
        triton_linear.linear(torch.empty(64, 256), stack)
    assert stages == [3, 2]
