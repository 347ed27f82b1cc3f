"""`coterie convert --to packed` as it is typed: what it says, what it refuses, a text to calibrate with."""

import json
from pathlib import Path

import pytest

from coterie.cli.main import main


def convert(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["convert", *map(str, words), "--to", "packed"])
    return code, capsys.readouterr().err


def test_a_text_is_read_with_the_models_own_tokenizer(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": "Il était une fois un roi."}) for _ in range(40)))
    code, said = convert(capsys, tiny_folder, tmp_path / "packed", "--type", "int4", "--calibration", text)
    assert code == 0 and f"wrote {tmp_path / 'packed'}" in said
    assert "tokens of a text" in (tmp_path / "packed" / "README.md").read_text()


def test_what_stays_plain_is_said(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = convert(capsys, tiny_folder, tmp_path / "packed", "--type", "int2", "--method", "hqq")
    assert code == 0 and "24 matrices stay float32 because intermediate_size is 48, no multiple of 32" in said
    assert main(["inspect", str(tmp_path / "packed")]) == 0
    shown = capsys.readouterr().out
    assert "attention  8 bit, groups of 32" in shown and "experts    F32" in shown


@pytest.mark.parametrize(
    ("words", "match"),
    [([], "--type int8"), (["--type", "bf16"], "expected one of int8"), (["--type", "int4", "--method", "x"], "hqq")],
)
def test_what_does_not_exist_is_the_users_mistake(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    code, said = convert(capsys, tiny_folder, tmp_path / "packed", *words)
    assert code == 2 and match in said and not (tmp_path / "packed").exists()
