"""Numbers to the blocks of a GGUF file, rounded as ggml's own reference does, so that files are what others expect.

Q8_0: d is the largest magnitude of 32 numbers / 127, each number the nearest multiple, halves away from zero.
Q4_0: d is the number of largest magnitude / -8, sign kept, so that it is exactly -8 of 16 steps; the others are
floor(x/d + 8.5), at most 15. Both divide by d as float32, before it is rounded to float16.
"""

from typing import Any

import numpy as np

from coterie.quant.ggml_blocks import GGML_TYPES

__all__ = ["WRITTEN", "quantise"]

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def quantise(kind: str, values: Floats) -> Bytes:
    """float32 [N, K] as rows of blocks, uint8 [N, bytes of a row]; K is whole blocks. Finite numbers only.

    Where float16 scales or numbers overflow they become Inf, which the caller looks for.
    """
    values = np.ascontiguousarray(values, np.float32)
    n = values.shape[0]
    if kind in ("F32", "F16"):
        with np.errstate(over="ignore"):
            return values.astype("<f4" if kind == "F32" else "<f2").view(np.uint8).reshape(n, -1)
    if kind == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8).reshape(n, -1)
    blocks = values.reshape(-1, GGML_TYPES[kind].size)
    return (_q8_0 if kind == "Q8_0" else _q4_0)(blocks).reshape(n, -1)


def _q8_0(blocks: Floats) -> Bytes:
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([_f16(d), q.view(np.uint8)], axis=1)


def _q4_0(blocks: Floats) -> Bytes:
    at = np.abs(blocks).argmax(axis=1)[:, None]
    d = np.take_along_axis(blocks, at, axis=1) / np.float32(-8)
    q = np.minimum((blocks * _inverse(d) + np.float32(8.5)).astype(np.int8), 15).view(np.uint8)
    return np.concatenate([_f16(d), q[:, :16] | q[:, 16:] << 4], axis=1)


def _inverse(d: Floats) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d).astype(np.float32)


def _f16(d: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return d.astype("<f2").view(np.uint8)
