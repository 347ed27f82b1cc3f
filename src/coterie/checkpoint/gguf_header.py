"""The head of a GGUF file, read with every number checked against the file before anything is made of it.

    "GGUF"  version u32  n_tensors u64  n_keys u64
    n_keys times:     key, type u32, value           (a string is its length u64 and its bytes)
    n_tensors times:  name, n_dimensions u32, lengths u64 (the shortest stride first), type u32, offset u64
    padding to the alignment, then the data; offsets count from there

Versions 2 and 3, little endian. Nothing is allocated by a count before the bytes that it promises are known to be
there. As llama.cpp's reader does, this one wants
every tensor where the one before it ends, so that holes and overlaps are errors.
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from coterie.errors import CheckpointError
from coterie.quant.ggml_blocks import GGML_TYPES, GgmlType

__all__ = ["MAGIC", "NUMBER_FORMATS", "VALUE_TYPES", "Header", "TensorInfo", "parse_header"]

MAGIC = b"GGUF"
VALUE_TYPES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
NUMBER_FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B",
                  "u64": "Q", "i64": "q", "f64": "d"}  # fmt: skip
_NUMBERS = {name: struct.Struct("<" + code) for name, code in NUMBER_FORMATS.items()}
_BY_NUMBER = {t.number: t for t in GGML_TYPES.values()}
_UNREAD = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
           20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
           29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
           39: "MXFP4"}  # fmt: skip
_LONGEST_KEY, _LONGEST_NAME, _LONGEST_STRING = (1 << 16) - 1, 64, 64 << 20
_SINGLE = {*("general.architecture", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre"),
           *("split.no", "split.count", "split.tensors.count")}  # one value each in every model  # fmt: skip
_SHOWN = 80  # characters of a key in a message
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 1 << 20, 4
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8  # bytes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` as numpy has it, the rows' length last; `offset` in the file."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.size * self.type.nbytes


@dataclass(frozen=True, slots=True)
class Header:
    """`metadata`: numbers, bools, strings (str), arrays (numpy, or a list of bytes)."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def parse_header(data: Any, where: str) -> Header:
    """The head of a file whose bytes (all of them) are the buffer `data`; `CheckpointError` says what is wrong."""
    cursor = _Cursor(memoryview(data), where)
    version, n_tensors, n_keys = _start(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.text("a key", _LONGEST_KEY)
        if key in metadata:
            raise cursor.wrong(f"the key {key[:_SHOWN]!r} is there twice")
        metadata[key] = _value(cursor, key[:_SHOWN])
    alignment = _alignment(cursor, metadata)
    raw = [_tensor(cursor) for _ in range(n_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors = tuple(TensorInfo(t.name, t.type, t.shape, t.offset + start) for t in raw)
    _check_places(cursor, tensors, start, alignment)
    return Header(version, metadata, tensors)


class _Cursor:
    """Where in the file we are; nothing is taken that is not there."""

    def __init__(self, data: memoryview, where: str):
        self.data, self.where, self.at, self.end = data, where, 0, len(data)

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {what}; the file is damaged, get it again")

    def take(self, n: int, what: str) -> memoryview:
        if n > self.end - self.at:
            raise self.wrong(f"{what} should have {n:,} bytes at byte {self.at:,}, and the file has {self.end:,}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, kind: str, what: str) -> Any:
        form = _NUMBERS[kind]
        return form.unpack(self.take(form.size, what))[0]

    def string(self, what: str, longest: int) -> bytes:
        length = self.number("u64", f"the length of {what}")
        if length > longest:
            raise self.wrong(f"{what} at byte {self.at:,} has {length:,} bytes, expected at most {longest:,}")
        return bytes(self.take(length, what))

    def text(self, what: str, longest: int) -> str:
        raw = self.string(what, longest)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what}, {raw[:40]!r}, is not UTF-8") from None
        if not text:
            raise self.wrong(f"{what} at byte {self.at:,} is empty")
        return text


def _start(cursor: _Cursor) -> tuple[int, int, int]:
    if cursor.end == 0:
        raise CheckpointError(f"{cursor.where} is empty; get the file again")
    if bytes(cursor.data[:4]) != MAGIC:
        raise CheckpointError(f"{cursor.where} is no GGUF file: it begins with {bytes(cursor.data[:4])!r}, not b'GGUF'")
    cursor.at = 4
    version = cursor.number("u32", "the version")
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(f"{cursor.where} is a big-endian GGUF file, and only little-endian ones are read")
    if version == 1:
        raise CheckpointError(f"{cursor.where} is of GGUF version 1, expected 2 or 3: convert it with an old llama.cpp")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.where} is of GGUF version {version}, expected 2 or 3")
    n_tensors, n_keys = cursor.number("u64", "the number of tensors"), cursor.number("u64", "the number of keys")
    left = cursor.end - cursor.at
    for n, what, most in (
        (n_tensors, "tensors", min(_MOST_TENSORS, left // _SMALLEST_TENSOR)),
        (n_keys, "keys", min(_MOST_KEYS, left // _SMALLEST_KEY)),
    ):
        if n > most:
            raise cursor.wrong(f"it announces {n:,} {what}, and with its {cursor.end:,} bytes it can have {most:,}")
    return version, n_tensors, n_keys


def _value(cursor: _Cursor, key: str) -> Any:
    kind = _kind(cursor, key)
    if kind == "string":
        raw = cursor.string(f"the value of {key!r}", _LONGEST_STRING)
        return raw.decode("utf-8", "replace")
    if kind == "array":
        return _array(cursor, key)
    value = cursor.number(kind, f"the value of {key!r}")
    if kind == "bool":
        if value > 1:
            raise cursor.wrong(f"the value of {key!r} is {value}, expected a truth value, 0 or 1")
        return bool(value)
    return value


def _kind(cursor: _Cursor, key: str) -> str:
    number = cursor.number("u32", f"the type of {key!r}")
    if number >= len(VALUE_TYPES):
        raise cursor.wrong(f"the value of {key!r} is of the unknown type {number}")
    return VALUE_TYPES[number]


def _array(cursor: _Cursor, key: str) -> Any:
    kind, n = _kind(cursor, key), cursor.number("u64", f"the length of {key!r}")
    what = f"the array {key!r}"
    if key in _SINGLE:
        raise cursor.wrong(f"{key!r} is an array, expected one value")
    if kind == "array":
        raise cursor.wrong(f"{what} holds arrays, which no model's does")
    if kind != "string":
        numbers = cursor.take(n * _NUMBERS[kind].size, what)
        return np.frombuffer(numbers, np.dtype(NUMBER_FORMATS[kind]).newbyteorder("<")).copy()
    if n > (cursor.end - cursor.at) // 8:
        raise cursor.wrong(f"{what} should have {n:,} strings at byte {cursor.at:,}, and the file has {cursor.end:,}")
    return _strings(cursor, n, what)


def _strings(cursor: _Cursor, n: int, what: str) -> list[bytes]:
    """n strings; written out, as a vocabulary has tens of thousands."""
    data, at, end = cursor.data, cursor.at, cursor.end
    found: list[bytes] = []
    unpack = _NUMBERS["u64"].unpack_from
    for _ in range(n):
        if at + 8 > end:
            raise cursor.wrong(f"{what} breaks off after {len(found):,} of {n:,} strings")
        stop = at + 8 + unpack(data, at)[0]
        if stop > end:
            raise cursor.wrong(f"string {len(found):,} of {what} goes beyond the end of the file")
        found.append(bytes(data[at + 8 : stop]))
        at = stop
    cursor.at = at
    return found


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.wrong(f"general.alignment is {str(alignment)[:40]}, expected a power of two")
    return alignment


def _tensor(cursor: _Cursor) -> TensorInfo:
    """One entry; its offset still counts from the start of the data."""
    name = cursor.text("the name of a tensor", _LONGEST_NAME)
    n_dimensions = cursor.number("u32", f"the number of dimensions of {name!r}")
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise cursor.wrong(f"{name!r} has {n_dimensions:,} dimensions, expected 1 to {_MOST_DIMENSIONS}")
    shape = tuple(cursor.number("u64", f"the shape of {name!r}") for _ in range(n_dimensions))[::-1]
    number = cursor.number("u32", f"the type of {name!r}")
    offset = cursor.number("u64", f"the offset of {name!r}")
    if number not in _BY_NUMBER:
        known = f"type {_UNREAD[number]}" if number in _UNREAD else f"the unknown type {number}"
        raise CheckpointError(
            f"{cursor.where}: {name!r} is of {known}, which is not read; expected one of {', '.join(GGML_TYPES)}"
        )
    kind = _BY_NUMBER[number]
    if not all(1 <= n < 1 << 62 for n in shape):
        raise cursor.wrong(f"{name!r} has the shape {list(shape)}, expected whole numbers from 1 to 2^62")
    if shape[-1] % kind.size:
        raise cursor.wrong(
            f"{name!r} has rows of {shape[-1]:,} numbers, expected a multiple of {kind.size} ({kind.name})"
        )
    info = TensorInfo(name, kind, shape, offset)
    if info.nbytes > cursor.end:
        raise cursor.wrong(f"{name!r} {list(shape)} has {info.nbytes:,} bytes, and the file has {cursor.end:,}")
    return info


def _check_places(cursor: _Cursor, tensors: tuple[TensorInfo, ...], start: int, alignment: int) -> None:
    """Names once each; data aligned, one after the other, inside the file."""
    seen: set[str] = set()
    for t in tensors:
        if t.name in seen:
            raise cursor.wrong(f"the tensor {t.name!r} is there twice")
        seen.add(t.name)
        if (t.offset - start) % alignment:
            raise cursor.wrong(f"{t.name!r} has the offset {t.offset - start:,}, expected a multiple of {alignment}")
        if t.offset + t.nbytes > cursor.end:
            raise cursor.wrong(
                f"{t.name!r} should end at byte {t.offset + t.nbytes:,}, and the file has {cursor.end:,}"
            )
    ordered = sorted(tensors, key=lambda t: t.offset)
    if ordered and ordered[0].offset != start:
        raise cursor.wrong(
            f"before the data of {ordered[0].name!r} there is a hole of {ordered[0].offset - start:,} bytes"
        )
    for before, t in pairwise(ordered):
        end = start + -(-(before.offset + before.nbytes - start) // alignment) * alignment
        if before.offset + before.nbytes > t.offset:
            raise cursor.wrong(f"the data of {before.name!r} and {t.name!r} overlap")
        if end != t.offset:
            raise cursor.wrong(f"between the data of {before.name!r} and {t.name!r} there is a hole")
