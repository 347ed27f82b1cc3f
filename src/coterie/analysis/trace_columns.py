"""Columns of a block as arrays, there and back: ids in 4, 8 or 16 bits, weights in 8, layer by layer.

In 4 bits the first of two ids is the low half of a byte; a layer begins at a whole byte. Example, one layer, K = 2: the
ids [[3, 7], [1, 0]] are the bytes 0x73 0x01. An unused slot has id 0 here; a bitmap says which are unused, and stands
in a block only where there are any. Shapes: T tokens, L layers, K slots, N = T·K.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_bitmap", "pack_ids", "pack_weights", "unpack_bitmap", "unpack_ids"]

Bytes = NDArray[np.uint8]


def pack_ids(ids_TLK: NDArray[np.int16], bits: int) -> Bytes:
    """-> [L, bytes]; -1 becomes 0."""
    ids_LN = _by_layer(ids_TLK.clip(0))
    if bits == 16:
        return np.ascontiguousarray(ids_LN.astype("<u2")).view(np.uint8)
    ids_LN = ids_LN.astype(np.uint8)
    if bits == 8:
        return ids_LN
    if ids_LN.shape[1] % 2:
        ids_LN = np.pad(ids_LN, ((0, 0), (0, 1)))
    packed: Bytes = ids_LN[:, 0::2] | (ids_LN[:, 1::2] << 4)
    return packed


def unpack_ids(packed_LB: Bytes, bits: int, start: int, stop: int) -> NDArray[np.int16]:
    """Ids `start` to `stop` of the N of each layer -> [L, stop - start]."""
    if bits == 16:
        return packed_LB.view("<u2")[:, start:stop].astype(np.int16)
    if bits == 8:
        return packed_LB[:, start:stop].astype(np.int16)
    part = packed_LB[:, start // 2 : -(-stop // 2)]
    ids = np.empty((len(part), part.shape[1], 2), dtype=np.int16)
    ids[:, :, 0], ids[:, :, 1] = part & 15, part >> 4
    return ids.reshape(len(part), -1)[:, start % 2 : start % 2 + stop - start]


def pack_bitmap(is_TLK: NDArray[np.bool_]) -> Bytes:
    """-> [L, bytes], the first slot in the lowest bit."""
    return np.packbits(_by_layer(is_TLK), axis=1, bitorder="little")


def unpack_bitmap(packed_LB: Bytes, start: int, stop: int) -> NDArray[np.bool_]:
    """Slots `start` to `stop` -> [L, stop - start]."""
    part = packed_LB[:, start // 8 : -(-stop // 8)]
    return np.unpackbits(part, axis=1, bitorder="little")[:, start % 8 : start % 8 + stop - start].astype(bool)


def pack_weights(weights_TLK: NDArray[np.float32]) -> tuple[Bytes, float]:
    """-> [L, N] and the scale: a byte b stands for b · scale / 255. The scale is 1, or the largest where that is more.

    An error of at most scale / 510. Example: 0.75 is the byte 191, which reads 0.7490.
    """
    scale = max(1.0, float(weights_TLK.max(initial=0.0)))
    return np.rint(_by_layer(weights_TLK).clip(0) * np.float32(255 / scale)).astype(np.uint8), scale


def _by_layer(values_TLK: NDArray[Any]) -> NDArray[Any]:
    """-> [L, N]."""
    T, L, K = values_TLK.shape
    return np.ascontiguousarray(values_TLK.transpose(1, 0, 2)).reshape(L, T * K)
