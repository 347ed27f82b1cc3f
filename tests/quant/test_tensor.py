"""The layout against a slow twin that follows `docs/packed.md` value by value, and there and back."""

import struct
import time

import pytest
import torch
from torch import Tensor

from coterie.quant.formats import FORMATS, Format
from coterie.quant.tensor import Codes, PackedTensor, alternate_halves, join_halves, pack, unpack

OWN = {
    "int6_64": Format(6, group_units=2),
    "int4_64": Format(4, group_units=2, scales="f16_offset"),
    "int5_offset": Format(5, scales="f16_offset"),
    "int3": Format(3),
    "int8_super": Format(8, scales="super_min"),
    "int2_pairs": Format(2, 16, 2, "f16_offset"),
}
ALL = FORMATS | OWN


def random_codes(format: Format, N: int, K: int, seed: int = 0) -> Codes:
    g = torch.Generator().manual_seed(seed)
    u = torch.randint(0, 1 << format.bits, (N, K), dtype=torch.uint8, generator=g)

    def f16(n: int) -> Tensor:
        return torch.randn(N, n, generator=g).half()

    if not format.is_super:
        G = -(-K // format.group)
        return Codes(u, f16(G), f16(G) if format.scales == "f16_offset" else None)
    B, U = -(-K // 256), K // format.unit
    if format.scales == "super":
        return Codes(u, f16(B), None, torch.randint(-128, 128, (N, U), generator=g).to(torch.int8))
    top = 16 if format.scales == "super_nibble" else 256
    sc, m = (torch.randint(0, top, (N, U), generator=g).to(torch.uint8) for _ in range(2))
    return Codes(u, f16(B), f16(B), sc, m)


def slow_pack(format: Format, c: Codes) -> bytes:
    """The layout's words, one value at a time."""
    N, K = c.u_NK.shape
    u, out = c.u_NK.tolist(), bytearray()

    def at(t: Tensor | None, row: int, i: int) -> float:
        return 0 if t is None or row >= N else t[row, i].item()

    for p in range(-(-N // 16)):
        rows = range(16 * p, 16 * p + 16)
        for first in range(0, K, 256):
            n, b = min(256, K - first), first // 256
            if format.is_super:
                for t in (c.scale, c.offset):
                    out += b"".join(struct.pack("<e", at(t, r, b)) for r in rows)
            for g in range(first // format.group, -(-(first + n) // format.group)):
                if format.scales == "super":
                    out += b"".join(struct.pack("b", int(at(c.sub_scale, r, g))) for r in rows)
                elif format.scales == "super_min":
                    for t in (c.sub_scale, c.sub_offset):
                        out += bytes(int(at(t, r, g)) for r in rows)
                elif format.scales == "super_nibble":
                    out += bytes(int(at(c.sub_scale, r, g)) | int(at(c.sub_offset, r, g)) << 4 for r in rows)
                else:
                    for t in (c.scale, c.offset)[: 1 + (format.scales == "f16_offset")]:
                        out += b"".join(struct.pack("<e", at(t, r, g)) for r in rows)
            spans = []
            for s in range(first, first + n, 32):
                values = [0] * 512
                for k in range(32):
                    for col, r in enumerate(rows):
                        values[k // 4 * 64 + col * 4 + k % 4] = u[r][s + k] if r < N else 0
                spans.append(values)
            bits = format.bits
            if bits == 8:
                out += b"".join(bytes(v) for v in spans)
            if bits in (4, 5, 6):
                out += b"".join(bytes((v[i] & 15) | (v[256 + i] & 15) << 4 for i in range(256)) for v in spans)
            if bits in (2, 3, 6):
                for v in spans:
                    t2 = [x >> 4 if bits == 6 else x & 3 for x in v]
                    out += bytes(sum(t2[f * 128 + i] << 2 * f for f in range(4)) for i in range(128))
            if bits in (3, 5):
                for v in spans:
                    out += bytes(sum((v[8 * i + j] >> (bits - 1)) << j for j in range(8)) for i in range(64))
    return bytes(out)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("N", "K"), [(16, 256), (33, 96), (5, 32), (48, 544)])
def test_pack_follows_the_layout_and_comes_back(name: str, N: int, K: int) -> None:
    format = ALL[name]
    codes = random_codes(format, N, K)
    packed = pack(format, codes)
    assert packed.nbytes == format.matrix_bytes(N, K)
    assert bytes(packed.data.numpy()) == slow_pack(format, codes)
    back = unpack(packed)
    for field in ("u_NK", "scale", "offset", "sub_scale", "sub_offset"):
        a, b = getattr(codes, field), getattr(back, field)
        assert (a is None) == (b is None), field
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), field


@pytest.mark.parametrize("name", ALL)
def test_dequantise_is_the_formula(name: str) -> None:
    format, N, K = ALL[name], 20, 320
    c = random_codes(format, N, K)
    w, zero = pack(format, c).dequantise(), 1 << (format.bits - 1)
    assert w.shape == (N, K) and w.dtype == torch.float32
    for r, k in ((0, 0), (3, 17), (19, 319), (7, 257)):
        u, g, b, unit = int(c.u_NK[r, k]), k // format.group, k // 256, k // format.unit
        if format.scales == "f16":
            expected = c.scale[r, g].float() * (u - zero)
        elif format.scales == "f16_offset":
            expected = c.scale[r, g].float() * u + c.offset[r, g].float()
        elif format.scales == "super":
            expected = c.scale[r, b].float() * c.sub_scale[r, unit].float() * (u - zero)
        else:
            factor = c.scale[r, b].float() * c.sub_scale[r, unit].float()
            expected = factor * u - c.offset[r, b].float() * c.sub_offset[r, unit].float()
        assert w[r, k] == expected, (r, k)


@pytest.mark.parametrize("name", ALL)
def test_rows_are_those_of_the_whole_matrix(name: str) -> None:
    packed = pack(ALL[name], random_codes(ALL[name], 40, 320))
    ids = torch.tensor([39, 0, 17, 17, 15])
    assert torch.equal(packed.rows(ids), packed.dequantise()[ids])
    assert packed.rows(ids[:0]).shape == (0, 320)


def test_data_may_be_a_piece_of_something_larger() -> None:
    packed = pack(FORMATS["int4"], random_codes(FORMATS["int4"], 16, 64))
    held = torch.zeros(packed.nbytes + 100, dtype=torch.uint8)
    held[64 : 64 + packed.nbytes] = packed.data
    piece = PackedTensor(packed.format, packed.shape, held[64 : 64 + packed.nbytes])
    assert torch.equal(piece.dequantise(), packed.dequantise())


def test_alternate_halves_puts_each_panel_of_gate_before_its_panel_of_up() -> None:
    w = torch.arange(64).view(64, 1)  # F = 32: gate rows 0..31, up rows 32..63
    assert alternate_halves(w).flatten().tolist() == [*range(16), *range(32, 48), *range(16, 32), *range(48, 64)]
    assert torch.equal(join_halves(alternate_halves(w)), w)


def test_a_wrong_number_of_bytes_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="expected"):
        PackedTensor(Format(8), (16, 32), torch.zeros(5, dtype=torch.uint8))


@pytest.mark.full
def test_a_large_matrix_packs_in_seconds() -> None:
    codes = random_codes(FORMATS["int4"], 14336, 4096)
    start = time.perf_counter()
    pack(FORMATS["int4"], codes)
    assert time.perf_counter() - start < 10
