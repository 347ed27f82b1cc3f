import pytest

from coterie.errors import RequestError
from coterie.eval.settings import one_of, parts_of, real, whole, wholes


def test_values_within_their_bounds() -> None:
    settings = {"n": "12", "lengths": "512, 64,512", "form": "b"}
    assert whole(settings, "n", 3, least=1, most=12) == 12 and whole(settings, "m", 3, least=1, most=12) == 3
    assert wholes(settings, "lengths", (1,), least=64, most=512) == (64, 512)
    assert wholes({}, "lengths", (1,), least=64, most=512) == (1,)
    assert parts_of(settings, "lengths") == ["512", "64", "512"] and parts_of(settings, "x") == []
    assert one_of(settings, "form", ("a", "b")) == "b" and one_of({}, "form", ("a", "b")) == "a"


@pytest.mark.parametrize("text", ["13", "0", "x", "1.5", "", "9" * 5000])
def test_a_value_out_of_bounds_is_named_with_them(text: str) -> None:
    with pytest.raises(RequestError, match=r"--set n=.*expected a whole number from 1 to 12"):
        whole({"n": text}, "n", 3, least=1, most=12)


def test_lists_and_choices_that_are_none() -> None:
    with pytest.raises(RequestError, match="one comma between"):
        parts_of({"files": "a,,b"}, "files")
    with pytest.raises(RequestError, match="one comma between"):
        parts_of({"files": "a," * 200}, "files")
    with pytest.raises(RequestError, match="expected a or b"):
        one_of({"form": "c"}, "form", ("a", "b"))


def test_a_real_number_within_its_bounds() -> None:
    assert real({"t": "0.5"}, "t", 1.0, least=0, most=2) == 0.5 and real({}, "t", 1.0, least=0, most=2) == 1.0
    for text in ("x", "nan", "inf", "-1", "2.1", ""):
        with pytest.raises(RequestError, match=r"--set t=.*expected a number from 0 to 2"):
            real({"t": text}, "t", 1.0, least=0, most=2)
