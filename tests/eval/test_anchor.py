import pytest

from coterie.errors import RequestError
from coterie.eval.anchor import parse_anchor


def test_a_name_and_a_rating() -> None:
    assert parse_anchor("mixtral-8x7b-instruct:1114") == ("mixtral-8x7b-instruct", 1114.0)
    assert parse_anchor("org/name:file.gguf: 1000.5") == ("org/name:file.gguf", 1000.5)


@pytest.mark.parametrize("text", ["", "x", ":1114", "x:", "x:high", "x:nan", "x:inf", "x:1e9"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(RequestError, match="expected NAME:RATING"):
        parse_anchor(text)
