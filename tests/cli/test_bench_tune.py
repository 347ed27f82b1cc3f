"""`coterie bench tune` without a card, and what it takes."""

import pytest
import torch

from coterie.cli.main import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["demo"], ["--shape", "64,96,8,2"]):
        assert main(["bench", "tune", *arguments]) == 2
        assert "tiles are measured on a CUDA card that Triton can use, and here is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "takes a MODEL or --shape"),
        (["demo", "--shape", "64,96,8,2"], "one of them"),
        (["--shape", "64,96,2,8"], "expected D,F,E,K with K at most E"),
        (["--shape", "64,96"], "expected D,F,E,K"),
        (["demo", "--rows", "a"], "expected whole numbers above 0"),
        (["demo", "--rows", "0"], "expected whole numbers above 0"),
    ],
)
def test_what_it_is_given_is_checked(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tune", *arguments]) == 2
    assert says in capsys.readouterr().err
