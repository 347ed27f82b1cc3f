"""The blocks of GGUF files, as ggml lays them out: their sizes, their fields, their exact values in float32.

A row of K numbers is K / `size` blocks of `nbytes` bytes. `split` takes blocks apart into the fields of `formats.py`
without losing a bit (u, the unsigned values, and the scales); `dequantise` is the formula over them. The K-quants have
256 numbers in a block, with 6- or 4-bit scales (and minima) packed into it for each 16 or 32 of them.

Worked example, Q4_0: the bytes 00 3C 9A ... are d = 1.0, then 0x9A: number 0 is (0xA - 8)·d = 2, number 16 is
(0x9 - 8)·d = 1: low nibbles are the first half of a block, high ones the second.
Shapes: N rows, K numbers a row, b blocks a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["GGML_TYPES", "GgmlType", "Parts", "dequantise", "scale_bytes", "split"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class GgmlType:
    """`number` in a file's header; `size` numbers are `nbytes` bytes."""

    name: str
    number: int
    size: int
    nbytes: int

    @property
    def is_quantised(self) -> bool:
        return self.size > 1

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.size


GGML_TYPES = {
    t.name: t
    for t in (
        GgmlType("F32", 0, 1, 4),
        GgmlType("F16", 1, 1, 2),
        GgmlType("BF16", 30, 1, 2),
        GgmlType("Q4_0", 2, 32, 18),
        GgmlType("Q4_1", 3, 32, 20),
        GgmlType("Q5_0", 6, 32, 22),
        GgmlType("Q5_1", 7, 32, 24),
        GgmlType("Q8_0", 8, 32, 34),
        GgmlType("Q2_K", 10, 256, 84),
        GgmlType("Q3_K", 11, 256, 110),
        GgmlType("Q4_K", 12, 256, 144),
        GgmlType("Q5_K", 13, 256, 176),
        GgmlType("Q6_K", 14, 256, 210),
    )
}


@dataclass(frozen=True, slots=True)
class Parts:
    """`u` [N, K] uint8 and its scales, the fields of `tensor.Codes` as numpy arrays.

    `scale`, `offset` float16: of each group of 32, or of each 256 (d, dmin) where `sub_scale` (int8 or uint8) and
    `sub_offset` (uint8) belong to each 16 or 32. What a type does not have is None.
    """

    u: Bytes
    scale: Array
    offset: Array | None = None
    sub_scale: Array | None = None
    sub_offset: Array | None = None


def split(kind: str, raw: Bytes) -> Parts:
    """The fields of quantised rows, `raw` uint8 [N, bytes of a row], of the type called `kind` ("Q4_K")."""
    t = GGML_TYPES[kind]
    n, row_bytes = raw.shape
    assert row_bytes % t.nbytes == 0, f"{row_bytes} bytes are no whole blocks of {kind}"
    return _SPLITTERS[kind](raw.reshape(n, row_bytes // t.nbytes, t.nbytes))


def scale_bytes(kind: str, raw: Bytes) -> Bytes:
    """The float16 scales among the bytes of whole blocks, as bytes: where a quantised tensor can be NaN or infinite."""
    block = raw.reshape(-1, GGML_TYPES[kind].nbytes)
    return np.concatenate([block[:, at : at + 2] for at in _SCALES_AT[kind]], axis=1).reshape(-1)


def dequantise(kind: str, raw: Bytes) -> Floats:
    """The numbers of rows, `raw` uint8 [N, bytes of a row], as float32 [N, K]; every type of `GGML_TYPES`."""
    if not GGML_TYPES[kind].is_quantised:
        return _floats(kind, raw)
    p = split(kind, raw)
    factor, offset = p.scale.astype(np.float32), None if p.offset is None else p.offset.astype(np.float32)
    if p.sub_scale is not None:
        factor = _times(factor, p.sub_scale)
        offset = None if offset is None or p.sub_offset is None else -_times(offset, p.sub_offset)
    value = p.u.reshape(*factor.shape, -1).astype(np.float32)
    if kind in _ZEROS:
        value -= np.float32(_ZEROS[kind])
    value *= factor[..., None]
    if offset is not None:
        value += offset[..., None]
    return value.reshape(p.u.shape)


def _times(outer: Floats, sub: Array) -> Floats:
    """Scales [N, b] of 256 numbers times those of their units [N, U], in float32 [N, U]."""
    return (outer[..., None] * sub.reshape(*outer.shape, -1)).astype(np.float32).reshape(sub.shape)


def _floats(kind: str, raw: Bytes) -> Floats:
    raw = np.ascontiguousarray(raw)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f4" if kind == "F32" else "<f2").astype(np.float32)


def _f16(field: Bytes) -> Array:
    """Two bytes of each block as float16 [N, b]."""
    return np.ascontiguousarray(field).view("<f2")[..., 0]


def _nibbles(field: Bytes) -> Bytes:
    """[..., m] bytes -> [..., 2m] values: all low nibbles, then all high ones."""
    return np.concatenate([field & 15, field >> 4], axis=-1)


def _bits(field: Bytes, width: int) -> Bytes:
    """[..., m] bytes -> [..., 8/width, m] values of `width` bits, lowest first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (field[..., None, :] >> shifts) & np.uint8((1 << width) - 1)


def _rows(values: Array) -> Array:
    """[N, b, ...] -> [N, K]."""
    return values.reshape(values.shape[0], -1)


def _q4_0(block: Bytes) -> Parts:
    return Parts(_rows(_nibbles(block[..., 2:])), _f16(block[..., :2]))


def _q4_1(block: Bytes) -> Parts:
    return Parts(_rows(_nibbles(block[..., 4:])), _f16(block[..., :2]), _f16(block[..., 2:4]))


def _q5(low: Bytes, high: Bytes) -> Array:
    """16 bytes of nibbles, and 4 bytes with the fifth bit of number j as bit j."""
    return _rows(_nibbles(low) | np.unpackbits(high, axis=-1, bitorder="little") << 4)


def _q5_0(block: Bytes) -> Parts:
    return Parts(_q5(block[..., 6:], block[..., 2:6]), _f16(block[..., :2]))


def _q5_1(block: Bytes) -> Parts:
    return Parts(_q5(block[..., 8:], block[..., 4:8]), _f16(block[..., :2]), _f16(block[..., 2:4]))


def _q8_0(block: Bytes) -> Parts:
    return Parts(_rows(block[..., 2:] ^ 128), _f16(block[..., :2]))  # int8 q is uint8 q + 128


def _q2_k(block: Bytes) -> Parts:
    u, sub = _bits(_halves(block[..., 16:80]), 2), _rows(block[..., :16])
    return Parts(_rows(u), _f16(block[..., 80:82]), _f16(block[..., 82:84]), sub & 15, sub >> 4)


def _q3_k(block: Bytes) -> Parts:
    low = _bits(_halves(block[..., 32:96]), 2)
    high = _bits(block[..., :32], 1).reshape(low.shape)  # bit 4h + f of byte l: number 128h + 32f + l
    packed = block[..., 96:108]
    sub = _nibbles(packed[..., :8]) | (_bits(packed[..., 8:], 2).reshape(*block.shape[:2], 16) << 4)
    return Parts(_rows(low | high << 2), _f16(block[..., 108:110]), sub_scale=_rows(sub).view(np.int8) - np.int8(32))


def _q4_k(block: Bytes) -> Parts:
    return _with_offsets(block, _bits(block[..., 16:].reshape(*block.shape[:2], 4, 32), 4))


def _q5_k(block: Bytes) -> Parts:
    low = _bits(block[..., 48:].reshape(*block.shape[:2], 4, 32), 4)
    high = _bits(block[..., 16:48], 1).reshape(low.shape)  # bit 2j + f of byte l: number 64j + 32f + l
    return _with_offsets(block, low | high << 4)


def _with_offsets(block: Bytes, u: Array) -> Parts:
    """Q4_K and Q5_K begin alike: d, dmin, and 12 bytes with eight 6-bit scales and eight 6-bit offsets."""
    a, b, c = (block[..., 4 + i : 8 + i] for i in (0, 4, 8))
    sub_scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    sub_offset = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    return Parts(_rows(u), _f16(block[..., :2]), _f16(block[..., 2:4]), _rows(sub_scale), _rows(sub_offset))


def _q6_k(block: Bytes) -> Parts:
    low = _bits(block[..., :128].reshape(*block.shape[:2], 2, 64), 4).reshape(*block.shape[:2], 2, 4, 32)
    high = _bits(_halves(block[..., 128:192]), 2)
    sub_scale = _rows(np.ascontiguousarray(block[..., 192:208]).view(np.int8))
    return Parts(_rows(low | high << 4), _f16(block[..., 208:210]), sub_scale=sub_scale)


def _halves(field: Bytes) -> Bytes:
    """64 bytes of a block as two times 32, for 128 numbers each."""
    return field.reshape(*field.shape[:2], 2, 32)


_SCALES_AT = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
              "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # fmt: skip
_ZEROS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q3_K": 4, "Q6_K": 32}
_SPLITTERS: dict[str, Callable[[Bytes], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
