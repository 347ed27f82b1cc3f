import pytest

from coterie.checkpoint.json_text import parse_object, read_object
from coterie.errors import CheckpointError, ConfigError


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ü": [1, 2.5, null]}', encoding="utf-8")
    assert read_object(tmp_path / "a.json", ConfigError) == {"ü": [1, 2.5, None]}


@pytest.mark.parametrize(
    "raw", [b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b"NaN", b'{"a":-Infinity}', b"3", b"", b"\xff"]
)
def test_what_is_not_clean_is_refused_with_the_callers_error(raw):
    with pytest.raises(CheckpointError, match=r"^here "):
        parse_object(raw, "here", CheckpointError)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is missing"):
        read_object(tmp_path / "a.json", ConfigError)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_object(tmp_path, ConfigError)
