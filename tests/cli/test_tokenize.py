"""`coterie tokenize` from the outside."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from coterie.cli.main import main


@pytest.fixture
def v3_folder(tmp_path: Path, mistral_files: dict[str, Path]) -> str:
    (tmp_path / "tokenizer.model").write_bytes(mistral_files["v3"].read_bytes())
    return str(tmp_path)


def test_a_table_of_pieces(v3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "-m", v3_folder, "Hello world"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["id", "piece"],
        ["1", "<s>"],
        ["23325", "▁Hello"],
        ["2294", "▁world"],
    ]
    assert "3 tokens for 11 characters (11 bytes); sentencepiece with 32768 tokens" in err


def test_json(v3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "-m", v3_folder, "--no-bos", "--json", "Hello"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ids"] == [23325] and document["tokenizer"]["bos_id"] == 1
    assert document["tokens"][0]["piece"] == "▁Hello" and document["tokens"][0]["why"]


def test_a_conversation(v3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    turns = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert main(["tokenize", "-m", v3_folder, "--chat", "--json", turns]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chat_form"] == "mistral-v3" and document["ids"][:2] == [1, 3] and document["ids"][-1] == 4


def test_text_from_stdin(v3_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `generate` reads it: the line's end that `echo` writes is not part of the text."""
    for data in (b"Hello", b"Hello\n", b"Hello\r\n"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        assert main(["tokenize", "-m", v3_folder, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ids"] == [1, 23325]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\xff"), isatty=lambda: False))
    assert main(["tokenize", "-m", v3_folder]) == 2
    assert "stdin is not UTF-8: byte 1 is 0xff" in capsys.readouterr().err


def test_on_a_terminal_it_does_not_wait_for_text(
    v3_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert main(["tokenize", "-m", v3_folder]) == 2
    assert "there is no text" in capsys.readouterr().err


def test_mistakes(
    tmp_path: Path, v3_folder: str, capsys: pytest.CaptureFixture[str], mistral_files: dict[str, Path]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.model").write_bytes(mistral_files["v1"].read_bytes())
    (tmp_path / "empty").mkdir()
    for args, sentence in [
        (["-m", str(tmp_path / "base"), "--chat", "Hi"], "does not show which chat form it speaks; give --chat-form"),
        (["-m", v3_folder, "--chat-form", "chatlm", "Hi"], "did you mean 'chatml'"),
        (["-m", str(tmp_path / "empty"), "Hi"], "has no tokenizer"),
        (["-m", v3_folder, "--no-bos", "--chat", "Hi"], "a conversation begins as its form says"),
        (["-m", v3_folder, "a\udcff"], "not valid UTF-8: character 1"),
    ]:
        assert main(["tokenize", *args]) == 2
        assert sentence in capsys.readouterr().err
