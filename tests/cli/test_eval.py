"""`coterie eval` from its arguments to what is printed; the demo with few rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.cli.eval_repeat import differences
from coterie.cli.main import main

ROWS = [
    {"id": f"r{n}", "question": f"Is {n} an even number", "choices": ["yes", "no way"], "answer": n % 2}
    for n in range(6)
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    for name in ("piqa", "mine"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines)
    monkeypatch.setenv("COTERIE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def run(data: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        code = main(["eval", *map(str, args)])
        return (code, *capsys.readouterr())

    return call


def test_a_table_on_stdout_and_the_rest_beside_it(run: Run) -> None:
    code, out, err = run("demo", "piqa", "--limit", 4)
    assert code == 0
    header, first, *_ = out.splitlines()
    assert header.split() == ["task", "group", "metric", "value", "±", "chance", "items", "seconds"]
    assert first.split()[:2] == ["piqa", "acc"] and "0.5000" in first
    assert "piqa: 0 shots; form Question: ... Answer:" in out
    (folder,) = Path("runs", "eval").iterdir()
    assert (folder / "run.json").exists() and str(folder) in err


def test_one_document_of_json(run: Run) -> None:
    code, out, _ = run("demo", "piqa", "--json", "-o", "run")
    assert code == 0 and json.loads(out) == json.loads(Path("run", "run.json").read_text())


def test_a_file_of_ones_own(run: Run, data: Path) -> None:
    code, out, _ = run("demo", data / "mine.jsonl", "--json")
    assert code == 0 and json.loads(out)["tasks"]["mine"]["items"] == 6


def test_a_run_is_repeated_and_compared(run: Run) -> None:
    assert run("demo", "piqa", "--limit", 5, "--seed", 2, "--shots", 1, "-o", "run")[0] == 0
    code, out, _ = run("--repeat", "run", "-o", "again")
    assert code == 0 and "the same: all 2 scores are those of run" in out
    assert json.loads(Path("again", "run.json").read_text())["arguments"]["seed"] == 2
    document = json.loads(Path("run", "run.json").read_text())
    document["tasks"]["piqa"]["metrics"][0]["value"] = 0.125
    Path("run", "run.json").write_text(json.dumps(document))
    code, out, err = run("--repeat", "run/run.json", "-o", "third", "--json")
    assert code == 2 and json.loads(out)["same"] is False
    assert "not the same as run/run.json: piqa acc was 0.125, is" in err
    document["model"]["fingerprint"] = "0" * 32
    Path("run", "run.json").write_text(json.dumps(document))
    code, _, err = run("--repeat", "run")
    assert code == 2 and "demo is not the model that run measured" in err


def test_a_run_is_not_repeated_from_its_own_answers(run: Run) -> None:
    assert run("demo", "piqa", "--limit", 1, "-o", "run")[0] == 0
    for repeated, folder in (("run", "./run"), ("run/run.json", "run")):
        code, out, err = run("--repeat", repeated, "-o", folder)
        assert code == 2 and out == "" and "is the run that is repeated" in err


def test_a_trace_replaces_nothing_but_a_trace(run: Run) -> None:
    Path("notes.txt").write_text("mine")
    code, out, err = run("demo", "piqa", "--limit", 1, "--trace", "notes.txt")
    assert code == 2 and out == "" and "notes.txt exists and is no trace" in err
    assert Path("notes.txt").read_text() == "mine" and not Path("runs").exists()


def test_what_has_changed_is_told_apart() -> None:
    def task(value: float) -> dict[str, Any]:
        return {"metrics": [{"name": "acc", "group": "g", "value": value}]}

    assert differences({"a": task(0.5)}, {"a": task(0.5)}) == []
    assert differences({"a": task(0.5)}, {"a": task(0.25)}) == ["a acc g was 0.5, is 0.25"]
    assert differences({"a": task(0.5)}, {"b": task(0.5)}) == ["a was run then only", "b was run now only"]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_scores_are_drawn(run: Run, ending: str) -> None:
    pytest.importorskip("matplotlib")
    assert run("demo", "piqa", "--plot", f"p.{ending}")[0] == 0
    assert Path(f"p.{ending}").read_bytes()[:4] in (b"<?xm", b"\x89PNG", b"<svg")


def test_the_routing_of_an_evaluation_is_recorded(run: Run) -> None:
    from coterie.analysis.trace import open_trace

    code, out, err = run("demo", "piqa", "--trace", "run.trace", "--json")
    assert code == 0 and "coterie trace report run.trace" in err
    trace = open_trace("run.trace")
    assert len(trace) == json.loads(out)["tasks"]["piqa"]["tokens"] and trace.domains == ["piqa"]
    assert trace.fingerprint == json.loads(out)["model"]["fingerprint"]
    trace.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected a MODEL and at least one TASK"),
        (("demo",), "expected a MODEL and at least one TASK"),
        (("demo", "piqua"), "'piqua' is no task; did you mean 'piqa'?; here are piqa"),
        (("demo", "winogrande"), "winogrande.jsonl is not in"),
        (("demo", "none.jsonl"), "none.jsonl: No such file or directory"),
        (("demo", "piqa", "--set", "x"), "expected NAME=VALUE"),
        (("demo", "piqa", "--set", "x=1"), "no setting 'x'"),
        (("demo", "piqa", "--set", "harness=eleuther"), "expected lm-eval"),
        (("demo", "piqa", "--plot", "p.pdf"), "ends with .svg or .png"),
        (("demo", "piqa", "--plot", "nowhere/p.svg"), "there is no folder nowhere"),
        (("demo", "piqa", "--paper"), "leave out piqa"),
        (("demo", "piqa", "--repeat", "x"), "leave out all but -o and --data"),
        (("--repeat", "x", "--paper"), "do not go together"),
        (("--repeat", "nowhere"), "nowhere: No such file"),
        (("demo", "piqa", "--data", "nowhere"), "nowhere is no folder"),
        (("demo", "piqa", "--limit", "0"), "--limit"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, args: tuple[str, ...], message: str) -> None:
    code, out, err = run(*args)
    assert code == 2 and out == "" and message in err and err.strip().count("\n") == 0


def test_an_interruption_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.eval.ask import Asker

    def interrupted(self: Any, items: Any, domain: str, save: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Asker, "ask", interrupted)
        code, out, err = run("demo", "piqa", "-o", "run")
    assert code == 130 and out == "" and "the same command with -o run goes on" in err
    assert run("demo", "piqa", "-o", "run")[0] == 0
