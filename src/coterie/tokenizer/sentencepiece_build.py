"""A SentencePiece model file made anew from a vocabulary with scores, so that the package itself does the encoding.

Files that carry a vocabulary but not the model it came from (GGUF) keep all that its BPE needs: pieces, scores, types.
Field numbers are sentencepiece_model.proto's.
"""

import struct
from collections.abc import Sequence

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "build_model"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE = 2


def build_model(
    pieces: Sequence[bytes],
    scores: Sequence[float],
    types: Sequence[int],
    special: dict[str, int],
    *,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    charsmap: bytes = b"",
) -> bytes:
    """The bytes of a BPE model. `special`: ids of "unk", "bos", "eos", "pad" as far as there are such pieces."""
    out = bytearray()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        body = _bytes(1, piece) + b"\x15" + struct.pack("<f", score)
        out += _bytes(1, body if kind == NORMAL else body + _number(3, kind))
    trainer = _number(3, _BPE) + _number(4, len(pieces))
    if BYTE in types:
        trainer += _number(35, 1)  # byte_fallback
    for i, name in enumerate(("unk", "bos", "eos", "pad")):
        token_id = special.get(name)
        trainer += _number(40 + i, -1 if token_id is None else token_id)
        if token_id is not None:
            trainer += _bytes(45 + i, pieces[token_id])
    normalizer = _bytes(1, b"identity" if not charsmap else b"custom") + _bytes(2, charsmap)
    normalizer += _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces) + _number(5, 1)
    return bytes(out + _bytes(2, trainer) + _bytes(3, normalizer))


def _varint(n: int) -> bytes:
    n &= (1 << 64) - 1  # negative numbers take ten bytes
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
