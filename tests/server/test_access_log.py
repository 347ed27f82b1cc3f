import json
import sys

import pytest

from coterie.server.access_log import write_line


def test_a_line_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    """A path with a line end in it, percent-decoded, must not look like a second entry."""
    write_line({"path": '/x\n{"status": 200}\r\x1b[31m\u2028\x7f\udcff', "status": 404})
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.isascii() and "\x1b" not in err and "\r" not in err
    assert json.loads(err)["path"].startswith('/x\n{"status"')


def test_lines_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    write_line({"path": "/" + "a" * 16000})
    assert len(capsys.readouterr().err) < 300


def test_nobody_reads_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    write_line({"status": 200})
