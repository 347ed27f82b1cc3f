"""A look into a SentencePiece model file (a protobuf) before the `sentencepiece` package gets it.

The package reads a file cut off between two pieces without complaint, and then encodes with the wrong settings; so the
outer fields are walked here. And a piece of type USER_DEFINED is matched wherever its spelling occurs in a text, so a
mark of a chat form (`<|im_start|>`) put into the file that way could be typed by a user: such pieces are made CONTROL.
Field numbers are sentencepiece_model.proto's: 1 piece (1 text, 2 score, 3 type), 2 trainer settings, 3 normaliser.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from coterie.errors import TokenizerError
from coterie.tokenizer.marks import is_mark

__all__ = ["SentencePieceFile", "checked_model", "read_model"]

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2
_USER_DEFINED = b"\x18\x04"  # field 3, a varint: 4
_CONTROL = 3


@dataclass
class SentencePieceFile:
    """What a model file holds: for each piece its text, score and type, and the settings that encoding depends on."""

    pieces: list[bytes] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    is_bpe: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


def read_model(data: bytes, source: str) -> SentencePieceFile:
    """The contents of a model file; `TokenizerError` where it is cut off."""
    found = SentencePieceFile()
    for number, start, end in _fields(data, source):
        if number == _PIECE:
            text, score, kind = b"", 0.0, 1
            for inner, at, stop in _fields(data, source, start, end):
                if inner == 1:
                    text = data[at:stop]
                elif inner == 2 and stop - at == 4:
                    score = struct.unpack_from("<f", data, at)[0]
                elif inner == 3:
                    kind = data[at]
            found.pieces.append(text)
            found.scores.append(score)
            found.types.append(kind)
        elif number == _TRAINER:
            found.is_bpe = any(n == 3 and data[at] == _BPE for n, at, _ in _fields(data, source, start, end))
        elif number == _NORMALIZER:
            for inner, at, stop in _fields(data, source, start, end):
                if inner == 2:
                    found.charsmap = data[at:stop]
                elif inner == 3:
                    found.add_dummy_prefix = data[at] != 0
                elif inner == 4:
                    found.remove_extra_whitespaces = data[at] != 0
    return found


def checked_model(data: bytes, source: str) -> bytes:
    """`data` with marks made CONTROL; `TokenizerError` where it is cut off or no SentencePiece model."""
    numbers = set()
    patched = bytearray(data)
    for number, start, end in _fields(data, source):
        numbers.add(number)
        if number == _PIECE and data.find(_USER_DEFINED, start, end) >= 0:
            _patch_type(patched, start, end, source)
    missing = {_PIECE: "pieces", _TRAINER: "training settings", _NORMALIZER: "normaliser settings"}
    for number, name in missing.items():
        if number not in numbers:
            raise _incomplete(source, f"its {name} are missing")
    return bytes(patched)


def _patch_type(data: bytearray, start: int, end: int, source: str) -> None:
    """Turn one USER_DEFINED piece that is spelled like a mark into a CONTROL piece, in place."""
    text, type_at = "", None
    for number, at, stop in _fields(data, source, start, end):
        if number == 1:
            text = data[at:stop].decode("utf-8", "replace")
        elif number == 3:
            type_at = at
    if type_at is not None and data[type_at] == _USER_DEFINED[1] and is_mark(text):
        data[type_at] = _CONTROL


def _fields(
    data: bytes | bytearray, source: str, at: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each field of a protobuf message; lengths are checked against the file."""
    end = len(data) if end is None else end
    while at < end:
        key, at = _varint(data, at, end, source)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, at = _varint(data, at, end, source)
            stop = at + length
        elif wire == 0:
            stop = _varint(data, at, end, source)[1]
        else:
            stop = at + {1: 8, 5: 4}.get(wire, end + 1)
        if stop > end:
            raise _incomplete(source, f"it breaks off at byte {at}")
        yield number, at, stop
        at = stop


def _varint(data: bytes | bytearray, at: int, end: int, source: str) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _incomplete(source, f"it breaks off at byte {at}")


def _incomplete(source: str, why: str) -> TokenizerError:
    return TokenizerError(f"{source} is not a complete SentencePiece model: {why}; fetch the file again")
