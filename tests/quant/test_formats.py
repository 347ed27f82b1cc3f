"""Byte counts that can be checked by hand, and formats as a file may describe them."""

import pytest

from coterie.errors import CheckpointError
from coterie.quant.formats import FORMATS, Format, format_of


@pytest.mark.parametrize(
    ("name", "bytes_of_256", "bits"),
    [
        ("q4_0", 18 * 8, 4.5),
        ("q4_1", 20 * 8, 5.0),
        ("q5_0", 22 * 8, 5.5),
        ("q5_1", 24 * 8, 6.0),
        ("q8_0", 34 * 8, 8.5),
        ("q2_k", 84, 2.625),
        ("q6_k", 4 + 16 + 192, 6.625),
        ("q4_k", 4 + 16 + 128, 4.625),
        ("q5_k", 4 + 16 + 160, 5.625),
        ("q3_k", 4 + 16 + 96, 3.625),
    ],
)
def test_a_block_of_256_takes(name: str, bytes_of_256: int, bits: float) -> None:
    format = FORMATS[name]
    assert format.block_bytes() == 16 * bytes_of_256
    assert format.matrix_bytes(16, 256) * 8 / (16 * 256) == bits


def test_the_last_block_is_shorter_and_rows_are_padded() -> None:
    format = Format(4, group_units=2)  # groups of 64: a block of 96 k has two
    assert format.block_bytes(96) == 2 * 32 + 96 * 8
    assert format.matrix_bytes(17, 352) == 2 * (4 * 32 + 256 * 8 + 2 * 32 + 96 * 8)


def test_fields_there_and_back() -> None:
    for format in FORMATS.values():
        assert Format.from_fields(format.to_fields(), "here") == format


@pytest.mark.parametrize(
    "change",
    [{"bits": 7}, {"bits": True}, {"bits": "4"}, {"unit": 64}, {"scales": "f32"}, {"group_units": 3}, {"more": 1},
     {"bits": []}, {"group_units": 2, "scales": "super"}],
)  # fmt: skip
def test_a_format_that_does_not_exist_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="here: a format"):
        Format.from_fields(Format(4).to_fields() | change, "here")
    with pytest.raises(CheckpointError, match="here: a format"):
        Format.from_fields(None, "here")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'q4_k'"):
        format_of("q4k")


def test_labels_say_what_matters() -> None:
    assert FORMATS["int8"].label == "8 bit, groups of 32"
    assert FORMATS["q4_1"].label == "4 bit, groups of 32, offset"
    assert FORMATS["q6_k"].label == "6 bit, groups of 16, 8-bit scales"
    assert FORMATS["q2_k"].label == "2 bit, groups of 16, 4-bit scales and offsets"
    assert Format(4, group_units=2).label == "4 bit, groups of 64"
