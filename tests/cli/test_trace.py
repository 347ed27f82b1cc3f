import subprocess
import sys

import pytest

from coterie.cli.main import main


def test_an_unknown_command_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "recrod"]) == 2
    assert "did you mean 'record'?" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], ["record", "--help"], ["merge", "--help"], ["report", "--help"]])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["trace", *args]) == 0
    assert "coterie trace" in capsys.readouterr().out.partition("Example")[2]


def test_alone_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace"]) == 2
    assert "report" in capsys.readouterr().err


def test_help_takes_no_torch() -> None:
    code = "import sys; from coterie.cli.main import main; main(['trace', 'record', '--help'])"
    code += "; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("False\n")


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "report", "/nowhere/x.trace", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
