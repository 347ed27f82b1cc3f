"""Every block type against the `gguf` package, bit for bit, on random bytes."""

import gguf
import numpy as np
import pytest
import torch

from coterie.quant import FORMATS, Codes, pack
from coterie.quant.ggml_blocks import GGML_TYPES, dequantise, scale_bytes, split

QUANTISED = [name for name, t in GGML_TYPES.items() if t.is_quantised]


def random_rows(kind: str, n: int = 7, blocks: int = 5, seed: int = 0) -> np.ndarray:
    """Random rows, every bit of the values and scales; the float16 fields finite."""
    t = GGML_TYPES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (n, blocks * (t.nbytes if t.is_quantised else 64)), np.uint8)
    if kind in ("F32", "F16", "BF16"):
        high = raw.reshape(n, -1, t.nbytes)[..., -1]
        high &= 0xBF  # no exponent of all ones
        return raw
    block = raw.reshape(n, blocks, t.nbytes)
    for at in {"Q2_K": (81, 83), "Q3_K": (109,), "Q6_K": (209,), "Q4_0": (1,), "Q5_0": (1,), "Q8_0": (1,)}.get(
        kind, (1, 3)
    ):
        block[..., at] &= 0xBF
    return raw


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_sizes_and_numbers_are_ggmls(kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    assert GGML_TYPES[kind].number == number and gguf.GGML_QUANT_SIZES[number] == (
        GGML_TYPES[kind].size,
        GGML_TYPES[kind].nbytes,
    )


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_values_equal_those_of_the_gguf_package_bit_for_bit(kind: str) -> None:
    raw = random_rows(kind)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    found = dequantise(kind, raw)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.array_equal(found.view(np.uint32) & 0x7FFFFFFF, expected.view(np.uint32) & 0x7FFFFFFF)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_bit_of_a_block_is_in_its_parts(kind: str) -> None:
    raw = random_rows(kind, n=1, blocks=1)
    whole = fields(kind, raw)
    for byte in range(raw.shape[1]):
        for bit in range(8):
            other = raw.copy()
            other[0, byte] ^= 1 << bit
            assert fields(kind, other) != whole, f"bit {bit} of byte {byte} is lost"


def fields(kind: str, raw: np.ndarray) -> list[bytes]:
    parts = split(kind, raw)
    names = ("u", "scale", "offset", "sub_scale", "sub_offset")
    return [v.tobytes() for name in names if (v := getattr(parts, name)) is not None]


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_scales_are_found_in_the_bytes(kind: str) -> None:
    raw = random_rows(kind)
    parts = split(kind, raw)
    expected = [parts.scale.reshape(-1)] + ([] if parts.offset is None else [parts.offset.reshape(-1)])
    assert np.array_equal(scale_bytes(kind, raw).view(np.float16).reshape(-1, len(expected)), np.stack(expected, 1))


def test_the_example_of_the_docstring() -> None:
    raw = np.array([[0x00, 0x3C, 0x9A] + [0x88] * 15], np.uint8)
    row = dequantise("Q4_0", raw)[0]
    assert row[0] == 2 and row[16] == 1 and not row[1:16].any() and not row[17:].any()


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_interleaved_layout_holds_the_same_numbers(kind: str) -> None:
    raw = random_rows(kind, n=20)
    p = split(kind, raw)
    numbers = [None if a is None else torch.from_numpy(a) for a in (p.u, p.scale, p.offset, p.sub_scale, p.sub_offset)]
    packed = pack(FORMATS[kind.lower()], Codes(*numbers))
    assert torch.equal(packed.dequantise(), torch.from_numpy(dequantise(kind, raw)))
