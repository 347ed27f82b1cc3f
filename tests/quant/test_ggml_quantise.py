"""Blocks we write against the `gguf` package's, byte for byte."""

import gguf
import numpy as np
import pytest

from coterie.quant.ggml_blocks import dequantise
from coterie.quant.ggml_quantise import WRITTEN, quantise


def values(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 256), np.float32) * np.exp(rng.standard_normal((64, 1), np.float32) * 3)
    x[0] = 0
    x[1, 32:64] = 0
    x[2, :32] = np.linspace(-1, 1, 32)  # halves
    x[3, :32] = 1e-7  # a scale that float16 can only just hold
    x[4] = np.float32(2.0) ** rng.integers(-8, 8, 256)
    return x


@pytest.mark.parametrize("kind", WRITTEN)
def test_bytes_are_those_of_the_gguf_package(kind: str) -> None:
    x = values(kind)
    expected = gguf.quantize(x, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    assert np.array_equal(quantise(kind, x), expected)


@pytest.mark.parametrize(
    ("kind", "bound"), [("F32", 0), ("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 1 / 254 + 2**-11), ("Q4_0", 1 / 8)]
)
def test_what_is_read_back_is_near(kind: str, bound: float) -> None:
    x = np.random.default_rng(2).standard_normal((8, 64), np.float32)
    largest = np.abs(x.reshape(8, 2, 32)).max(axis=2).repeat(32, axis=1)
    assert (np.abs(dequantise(kind, quantise(kind, x)) - x) <= largest * (bound * 1.01 + 1e-9)).all()


def test_a_scale_too_large_for_float16_becomes_infinite() -> None:
    x = np.full((1, 32), 1e9, np.float32)
    assert np.isinf(dequantise("Q8_0", quantise("Q8_0", x))).all()
    assert not np.isfinite(dequantise("F16", quantise("F16", x))).any()
