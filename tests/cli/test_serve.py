"""The command line of serve, up to where it would listen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.cli import serve
from coterie.cli.main import main
from coterie.server.keys import Keys

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, str]]]:
    """What would have been started."""
    calls: list[tuple[Any, dict[str, str]]] = []
    monkeypatch.setattr(serve, "_run", lambda settings, sources: calls.append((settings, sources)))
    return calls


def test_flags_win_over_the_file(started: list[Any], tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(f'port = 1\nmax_live = 3\ntotal-timeout = "2m"\n[models]\ntiny = "{tiny_folder}"\n')
    assert main(["serve", "demo", "--config", str(file), "--port", "2", "--idle-unload", "30m", "--speculate"]) == 0
    ((settings, sources),) = started
    assert (settings.port, settings.max_live, settings.total_timeout) == (2, 3, 120.0)
    assert settings.idle_unload == 1800 and settings.speculate and not settings.strict_api
    assert sources == {"demo": "demo", "tiny": str(tiny_folder)}


def test_names_of_models(started: list[Any], tiny_folder: Path) -> None:
    assert main(["serve"]) == 0 and main(["serve", f"other={tiny_folder}", str(tiny_folder)]) == 0
    assert [sources for _, sources in started] == [
        {"demo": "demo"},
        {"other": str(tiny_folder), tiny_folder.name: str(tiny_folder)},
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "0.0.0.0"], "needs keys"),
        (["--host", "::"], "needs keys"),
        (["--api-key-file", "/nowhere/keys"], "No such file"),
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["=demo"], "expected MODEL or NAME=MODEL"),
        (["a=demo", "a=/tmp"], "two models are named 'a'"),
        (["--idle-unload", "soon"], "expected a time"),
        (["--max-live", "0"], "max_live is 0"),
        (["--new-key", "alice"], "--api-key-file FILE"),
        (["--prot", "3"], "did you mean '--port'"),
        (["--config", "/nowhere/serve.toml"], "No such file"),
        (["--port", "99999"], "port is 99999"),
    ],
)
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    code = main(["serve", *args])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_new_key_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    assert main(["serve", "--new-key", "alice", "--api-key-file", str(file)]) == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert key not in err and key not in file.read_text() and Keys(file).find(None, key).name == "alice"
    assert main(["serve", "--new-key", "root:admin", "--api-key-file", str(file)]) == 0
    assert Keys(file).find(None, capsys.readouterr().out.strip()).scope == "admin"
    assert main(["serve", "--new-key", "alice", "--api-key-file", str(file)]) == 2


def test_a_dozen_flags() -> None:
    assert len([p for p in serve.command.params if p.name not in ("models", "debug")]) <= 12
