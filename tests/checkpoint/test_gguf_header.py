"""Files that lie. Each kind is one sentence that says what is wrong, and nothing is allocated by a number in a file.

The kinds of llama.cpp's own test of its reader (6 of the header, 6 of keys, 10 of tensors, 4 of data), and our own.
"""

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint.gguf_header import parse_header
from coterie.errors import CheckpointError

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
HUGE = (1 << 64) - 1


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(kind: int, n: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + values


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    n_dims = len(shape) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", n_dims, *shape, kind, offset)


KEYS = [key("general.architecture", STRING, string("llama")), key("llama.block_count", U32, struct.pack("<I", 1))]
TENSORS = [tensor("a", (32, 2), 0, 0), tensor("b", (5,), 0, 256), tensor("c", (32, 1), 2, 288)]
N_DATA = 288 + 18


def file(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    order: str = "<",
    keys: list[bytes] = KEYS,
    tensors: list[bytes] = TENSORS,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    n_data: int = N_DATA,
) -> bytes:
    counts = len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    head = magic + struct.pack(f"{order}IQQ", version, *counts) + b"".join(keys + tensors)
    return head + bytes(-len(head) % alignment) + bytes(n_data)


def aligned(value: int, kind: int = U32) -> bytes:
    return key("general.alignment", kind, struct.pack("<I" if kind != F32 else "<f", value))


BAD: dict[str, tuple[bytes, str]] = {
    # header
    "magic": (file(magic=b"GGML"), "no GGUF file: it begins with b'GGML'"),
    "version 1": (file(version=1), "version 1, expected 2 or 3"),
    "version of the future": (file(version=4), "version 4, expected 2 or 3"),
    "count of tensors": (file(n_tensors=HUGE), f"announces {HUGE:,} tensors"),
    "count of keys": (file(n_keys=HUGE), f"announces {HUGE:,} keys"),
    "empty": (b"", "is empty"),
    # keys
    "length of a key": (
        file(keys=[string("k", HUGE)]),
        f"a key at byte 32 has {HUGE:,} bytes, expected at most 65,535",
    ),
    "type of a value": (file(keys=[key("k", 13, bytes(8))]), "'k' is of the unknown type 13"),
    "length of a value": (
        file(keys=[key("k", STRING, string("v", HUGE))]),
        f"the value of 'k' at byte 45 has {HUGE:,} bytes",
    ),
    "key twice": (file(keys=[*KEYS, KEYS[1]]), "the key 'llama.block_count' is there twice"),
    "an array for a word": (
        file(keys=[key("general.architecture", ARRAY, array(U8, 2, b"ab"))]),
        "'general.architecture' is an array, expected one value",
    ),
    "an array for a number": (
        file(keys=[*KEYS, key("split.count", ARRAY, array(STRING, 1, string("x")))]),
        "'split.count' is an array, expected one value",
    ),
    "alignment 0": (file(keys=[aligned(0)]), "general.alignment is 0, expected a power of two"),
    "value cut off": (
        file(keys=[*KEYS, key("k", U64, b"")], tensors=[], n_data=0, alignment=1),
        "the value of 'k' should have 8 bytes",
    ),
    # tensors
    "length of a name": (
        file(tensors=[tensor(b"n" * 65, (1,))]),
        "the name of a tensor at byte 110 has 65 bytes, expected at most 64",
    ),
    "number of dimensions": (file(tensors=[tensor("n", (1,), n_dims=5)]), "'n' has 5 dimensions, expected 1 to 4"),
    "shape": (file(tensors=[tensor("n", (0, 4))]), "'n' has the shape [4, 0]"),
    "length too big": (file(tensors=[tensor("n", (1 << 63, 1))]), "'n' has the shape [1, 9223372036854775808]"),
    "bytes too many": (
        file(tensors=[tensor("n", (1 << 31, 1 << 31))]),
        "'n' [2147483648, 2147483648] has 18,446,744,073,709,551,616 bytes",
    ),
    "type of a tensor": (file(tensors=[tensor("n", (32,), 1000)]), "'n' is of the unknown type 1000"),
    "offset": (file(tensors=[tensor("n", (5,), 0, 1 << 40)]), "'n' should end at byte 1,099,511,627,"),
    "name twice": (file(tensors=[TENSORS[0], tensor("a", (5,), 0, 256)]), "the tensor 'a' is there twice"),
    "alignment 13": (file(keys=[aligned(13)]), "general.alignment is 13, expected a power of two"),
    "offsets of another alignment": (
        file(keys=[aligned(64)], alignment=64),
        "'c' has the offset 288, expected a multiple of 64",
    ),
    # data
    "too little data": (file(n_data=N_DATA - 1), "'c' should end at byte"),
    "data not aligned": (file(tensors=[tensor("n", (5,), 0, 4)]), "'n' has the offset 4, expected a multiple of 32"),
    "data of another alignment": (
        file(tensors=[TENSORS[0], tensor("b", (5,), 0, 320)], n_data=400),
        "between the data of 'a' and 'b' there is a hole",
    ),
    "no data": (file(n_data=0), "'a' [2, 32] has 256 bytes, and the file has 224"),
    # our own
    "big endian": (file(order=">"), "is a big-endian GGUF file"),
    "only a magic": (b"GGUF", "the version should have 4 bytes at byte 4, and the file has 4"),
    "alignment of another type": (file(keys=[aligned(32, F32)]), "general.alignment is 32.0, expected a power of two"),
    "alignment of 2 GiB": (file(keys=[aligned(1 << 31)]), "general.alignment is 2147483648"),
    "key without a name": (file(keys=[key("", U8, b"1")]), "a key at byte 32 is empty"),
    "key that is not UTF-8": (file(keys=[key(b"\xff", U8, b"1")]), r"a key, b'\xff', is not UTF-8"),
    "truth value 2": (file(keys=[key("k", BOOL, b"\x02")]), "'k' is 2, expected a truth value"),
    "array in an array": (file(keys=[key("k", ARRAY, array(ARRAY, 1, array(U8, 0)))]), "the array 'k' holds arrays"),
    "array of an unknown type": (file(keys=[key("k", ARRAY, array(99, 1))]), "'k' is of the unknown type 99"),
    "array of 2^64 numbers": (
        file(keys=[key("k", ARRAY, array(F64, HUGE))]),
        "the array 'k' should have 147,573,952,589,676,412,920 bytes",
    ),
    "array of 2^61 strings": (
        file(keys=[key("k", ARRAY, array(STRING, 1 << 61))]),
        "the array 'k' should have 2,305,843,009,213,693,952 strings",
    ),
    "array of strings cut off": (
        file(keys=[key("k", ARRAY, array(STRING, 8, string("a") * 3 + string("b", 1 << 62)))]),
        "string 3 of the array 'k' goes beyond the end",
    ),
    "no dimensions": (file(tensors=[tensor("n", ())]), "'n' has 0 dimensions"),
    "tensor without a name": (file(tensors=[tensor("", (1,))]), "the name of a tensor at byte 110 is empty"),
    "name that is not UTF-8": (file(tensors=[tensor(b"\xc3", (1,))]), r"the name of a tensor, b'\xc3', is not UTF-8"),
    "tensors that overlap": (
        file(tensors=[TENSORS[0], tensor("b", (64,), 0, 128)], n_data=400),
        "the data of 'a' and 'b' overlap",
    ),
    "two tensors in one place": (file(tensors=[TENSORS[0], tensor("b", (32, 2))]), "the data of 'a' and 'b' overlap"),
    "a hole before the data": (
        file(tensors=[tensor("n", (5,), 0, 64)]),
        "before the data of 'n' there is a hole of 64 bytes",
    ),
    "an offset that wraps": (
        file(tensors=[tensor("n", (8,), 0, (1 << 64) - 32)]),
        "'n' should end at byte 18,446,744,073,709,551,",
    ),
    "rows of half a block": (
        file(tensors=[tensor("n", (48, 2), 2)]),
        "'n' has rows of 48 numbers, expected a multiple of 32 (Q4_0)",
    ),
    "a type that is not read": (
        file(tensors=[tensor("n", (256,), 16)]),
        "'n' is of type IQ2_XXS, which is not read; expected one of F32",
    ),
    "more keys than are there": (
        file(n_keys=20, tensors=[], n_data=0),
        "it announces 20 keys, and with its 128 bytes it can have 7",
    ),
    "more tensors than are there": (file(n_tensors=9, n_data=0), "it announces 9 tensors"),
    "a tensor more than is there": (file(n_tensors=4), "empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_lies_is_refused_in_one_sentence_before_anything_is_allocated(kind: str) -> None:
    data, said = BAD[kind]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            parse_header(data, "x.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.gguf") and peak < 200_000


def test_there_are_all_kinds_of_llama_cpps_test_and_more() -> None:
    assert len(BAD) >= 26 + 14


GOOD: dict[str, bytes] = {
    "plain": file(),
    "version 2": file(version=2),
    "alignment 64": file(
        keys=[*KEYS, aligned(64)], tensors=[tensor("a", (5,)), tensor("b", (5,), 0, 64)], alignment=64
    ),
    "alignment 1": file(keys=[*KEYS, aligned(1)], tensors=[tensor("a", (5,)), tensor("b", (5,), 0, 20)], alignment=1),
    "in another order": file(tensors=TENSORS[::-1]),
    "no tensors": file(tensors=[], n_data=0),
    "nothing at all": file(keys=[], tensors=[], n_data=0),
    "an empty value": file(keys=[*KEYS, key("k", STRING, string("")), key("l", ARRAY, array(STRING, 0))]),
    "bytes after the data": file(n_data=N_DATA + 100),
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_sound_is_read(kind: str) -> None:
    header = parse_header(GOOD[kind], "x.gguf")
    assert len(header.tensors) == len({t.name for t in header.tensors})
    assert all(t.offset + t.nbytes <= len(GOOD[kind]) for t in header.tensors)


def test_every_kind_of_value() -> None:
    numbers = [(U8, "B", 200), (I8, "b", -3), (U16, "H", 60000), (I16, "h", -300), (U32, "I", 1 << 31), (I32, "i", -1)]
    numbers += [(F32, "f", 0.5), (BOOL, "B", 1), (U64, "Q", 1 << 63), (I64, "q", -1), (F64, "d", 0.1)]
    keys = [key(code + str(kind), kind, struct.pack("<" + code, value)) for kind, code, value in numbers]
    keys += [
        key(f"a{kind}", ARRAY, array(kind, 2, struct.pack(f"<2{code}", value, value))) for kind, code, value in numbers
    ]
    keys += [key("s", STRING, string("ü")), key("t", ARRAY, array(STRING, 2, string("a") + string(b"\xff")))]
    found = parse_header(file(keys=keys), "x").metadata
    for kind, code, value in numbers:
        assert found[code + str(kind)] == value
        assert np.array_equal(found[f"a{kind}"], [value, value])
    assert found["s"] == "ü" and found["t"] == [b"a", b"\xff"] and found["B7"] is True


@pytest.mark.parametrize("edit", [lambda data, i: data[:i], lambda data, i: data[:i] + b"\xff" * 8 + data[i + 8 :]])
def test_cut_or_overwritten_at_every_byte_it_is_never_worse_than_an_error(edit: Callable[[bytes, int], Any]) -> None:
    data = file(keys=[*KEYS, key("t", ARRAY, array(STRING, 3, string("abc") * 3))])
    n_refused = 0
    for i in range(len(data)):
        try:
            parse_header(edit(data, i), "x")
        except CheckpointError:
            n_refused += 1
    assert n_refused > 100
