"""Matrix products of the native kernels: every instruction set, every format, plain numbers, GGUF blocks in place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, reference
from coterie.quant.formats import FORMATS, Format
from coterie.quant.ggml_blocks import GGML_TYPES, split
from coterie.quant.mapped import MappedMatrix
from coterie.quant.tensor import Codes, PackedTensor, pack

TYPES = (torch.float32, torch.float16, torch.bfloat16)
QUANTISED = [name for name, t in GGML_TYPES.items() if t.is_quantised]
Packer, Mapper, Rounder = Callable[..., PackedTensor], Callable[..., MappedMatrix], Callable[[Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest number."""
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{error:.2e}"


def assert_rows_stand_alone(y_TN: Tensor, product: Callable[[Tensor], Tensor], x_TD: Tensor) -> None:
    """The bits of a row are the same in any company."""
    for first, stop in ((0, 1), (3, 5), (7, 12), (1, 14)):
        assert torch.equal(product(x_TD[first:stop]), y_TN[first:stop]), (first, stop)


@pytest.mark.parametrize(("N", "K"), [(48, 256), (40, 224), (70, 608), (1, 32)])
def test_packed(isa: str, format: Format, N: int, K: int, random_packed: Packer, rounded_rows: Rounder) -> None:
    part, x = random_packed(format, N, K), randn(19, K)
    handle = cpu.matrix_handle([part])
    y = cpu.linear(x, handle, N)
    assert_near(y, rounded_rows(x, format.bits) @ part.dequantise().double().T, 2e-6)
    assert_rows_stand_alone(y, lambda rows: cpu.linear(rows, handle, N), x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("x_dtype", TYPES)
@pytest.mark.parametrize(("N", "K"), [(48, 256), (37, 51), (16, 1000), (1, 1), (33, 513)])
def test_plain(isa: str, dtype: torch.dtype, x_dtype: torch.dtype, N: int, K: int) -> None:
    """Products and sums are float32, of bf16 rows and weights too, where the processor's instruction does them."""
    weight, x = randn(N, K, seed=1).to(dtype), randn(29, K).to(x_dtype)
    handle = cpu.matrix_handle([weight])
    y = cpu.linear(x, handle, N, dtype=torch.float32)
    assert_near(y, x.double() @ weight.double().T, 3e-6)
    assert torch.equal(cpu.linear(x, handle, N), y.to(x_dtype))
    assert_rows_stand_alone(y, lambda rows: cpu.linear(rows, handle, N, dtype=torch.float32), x)


def test_matrices_side_by_side(isa: str, random_packed: Packer) -> None:
    """Each has its own columns, whatever its format and however its last panel ends."""
    K = 96
    parts = [
        *(random_packed(FORMATS[name], N, K, N) for name, N in (("int8", 40), ("int2", 8), ("int4", 33), ("int3", 16))),
        *(randn(N, K).to(dtype) for N, dtype in ((5, torch.float32), (17, torch.bfloat16), (64, torch.float16))),
    ]
    x = randn(7, K)
    y = cpu.linear(x, cpu.matrix_handle(parts), sum(p.shape[0] for p in parts))
    alone = [cpu.linear(x, cpu.matrix_handle([p]), p.shape[0]) for p in parts]
    assert torch.equal(y, torch.cat(alone, 1))


@pytest.mark.parametrize("x_dtype", TYPES)
@pytest.mark.parametrize("K", [96, 320])
def test_a_norm_before_the_product(isa: str, x_dtype: torch.dtype, K: int, random_packed: Packer) -> None:
    """Fused, it gives the bits that it gives on its own."""
    x, weight = (3 * randn(9, K)).to(x_dtype), randn(K).abs().to(x_dtype)
    parts = [random_packed(FORMATS["int4"], 48, K), random_packed(FORMATS["int2"], 16, K), randn(23, K).to(x_dtype)]
    handle = cpu.matrix_handle(parts)
    fused = cpu.linear(x, handle, 87, (weight, 1e-5))
    assert torch.equal(fused, cpu.linear(cpu.rms_norm(x, weight, 1e-5), handle, 87))
    plain = reference.rms_norm(x, weight, 1e-5).double() @ parts[2].double().T
    assert_near(fused[:, 64:], plain, 4e-6 if x_dtype == torch.float32 else 2 * torch.finfo(x_dtype).eps)


def test_rows_may_lie_apart(isa: str, random_packed: Packer) -> None:
    wide, part = randn(6, 200), random_packed(FORMATS["int6"], 32, 64)
    handle = cpu.matrix_handle([part])
    assert torch.equal(cpu.linear(wide[:, 50:114], handle, 32), cpu.linear(wide[:, 50:114].contiguous(), handle, 32))


def test_rows_of_zeros_and_none(isa: str, format: Format, random_packed: Packer) -> None:
    part = random_packed(format, 32, 64)  # a handle does not keep it alive
    handle = cpu.matrix_handle([part])
    assert not cpu.linear(torch.zeros(3, 64), handle, 32).any()
    assert cpu.linear(torch.zeros(0, 64), handle, 32).shape == (0, 32)


def test_the_largest_bytes_do_not_overflow(isa: str, format: Format) -> None:
    """Values and activations at their limits in every place: sums of pairs must not saturate in 16 bits."""
    N, K = 16, 256
    for value in (0, (1 << format.bits) - 1):
        u, ones = torch.full((N, K), value, dtype=torch.uint8), torch.ones(N, -(-K // format.group)).half()
        offset = ones if format.scales == "f16_offset" else None
        codes = Codes(u, ones, offset)
        if format.is_super:
            kind, outer = torch.int8 if format.scales == "super" else torch.uint8, torch.ones(N, 1).half()
            top = torch.full((N, K // format.unit), 15 if format.scales == "super_nibble" else 127, dtype=kind)
            codes = Codes(u, outer, *((None, top) if format.scales == "super" else (outer, top, top)))
        part = pack(format, codes)
        for x in (torch.full((7, K), 127.0), torch.full((7, K), -127.0)):
            expected = x.double() @ part.dequantise().double().T
            assert torch.equal(cpu.linear(x, cpu.matrix_handle([part]), N).double(), expected)


@pytest.mark.parametrize("N", [16, 45])
def test_rows_of_a_packed_table(isa: str, format: Format, N: int, random_packed: Packer) -> None:
    """Exactly the dequantised rows; in another type, those rounded."""
    table, ids = random_packed(format, N, 352), torch.tensor([N - 1, 0, 7, 7, N // 2])
    rows = table.dequantise()[ids]
    assert torch.equal(cpu.embed(ids, table), rows)
    for dtype in TYPES[1:]:
        assert torch.equal(cpu.embed(ids, table, dtype), rows.to(dtype))


@pytest.mark.parametrize("kind", QUANTISED)
def test_repack(isa: str, kind: str, random_mapped: Mapper) -> None:
    """The bytes of a GGUF matrix in another order: those that `pack` makes of its numbers."""
    for N, K in ((48, 512), (37, 768), (5, 256)):
        mapped = random_mapped(kind, N, K)
        packed, n_bad = mapped.interleaved()
        numbers = split(kind, mapped.rows)
        names = ("u", "scale", "offset", "sub_scale", "sub_offset")
        tensors = [None if (a := getattr(numbers, n)) is None else torch.from_numpy(a) for n in names]
        expected = pack(FORMATS[kind.lower()], Codes(*tensors))
        assert n_bad == 0 and torch.equal(packed.data, expected.data)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_gguf_matrix_in_place_is_bitwise_the_interleaved_one(isa: str, kind: str, random_mapped: Mapper) -> None:
    K = 768
    x = randn(15, K)
    for mapped in (
        random_mapped(kind, 40, K),
        random_mapped(kind, 64, K, half=True),
        random_mapped(kind, 48, K, head_rows=24),
    ):
        packed, _ = mapped.interleaved()
        N = mapped.shape[0]
        assert torch.equal(packed.dequantise(), mapped.dequantise())
        expected = cpu.linear(x, cpu.matrix_handle([packed]), N)
        assert torch.equal(cpu.linear(x, cpu.matrix_handle([mapped]), N), expected)


def test_long_rows_are_read_in_pieces(isa: str, random_mapped: Mapper) -> None:
    """More than 2048 inputs and more than two tiles of rows: a sum goes on where it was left."""
    mapped, K = random_mapped("Q4_0", 32, 4640), 4640
    packed, _ = mapped.interleaved()
    handles = [cpu.matrix_handle([m]) for m in (packed, mapped)]
    x = randn(20, K)
    ys = [cpu.linear(x, handle, 32) for handle in handles]
    assert torch.equal(*ys)
    for handle in handles:
        assert torch.equal(cpu.linear(x[3:4], handle, 32), ys[0][3:4])


def test_scales_that_are_no_numbers_are_counted(isa: str, random_mapped: Mapper) -> None:
    mapped = random_mapped("Q4_1", 20, 64)
    mapped.rows[3, 0:2], mapped.rows[19, 22:24] = (0x00, 0x7C), (0x01, 0xFE)  # infinite s, NaN o
    assert mapped.interleaved()[1] == 2
