"""`coterie eval MODEL --paper`: tables on stdout, everything in paper.json, options that make no sense refused."""

import json
from pathlib import Path

import pytest

from coterie.cli.main import main

PIQA = [{"id": str(i), "question": "mend a cup", "choices": ["glue it", "sell it"], "answer": i % 2} for i in range(3)]


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PIQA))
    return folder


def test_tables_beside_the_paper_s(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["eval", str(tiny_folder), "--paper", "--data", str(data), "-o", str(tmp_path / "run")]
    assert main(run) == 0
    out, err = capsys.readouterr()
    assert "Table 2" in out and "1 of 12 benchmarks were run" in out and "Mixtral 8x7B" in out
    assert "PIQA: in the paper 0 shots; here acc" in out and "MMLU: in the paper" not in out
    assert "Not run: no *.valid.jsonl file of texts in the data" in out and "paper.json" in err
    assert main([*run, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [s["key"] for s in document["sections"]] == ["table-2", "table-3", "table-4", "table-5", "bias"]
    assert document == json.loads((tmp_path / "run/paper.json").read_text())


def test_a_setting_that_no_benchmark_takes_is_refused(
    tiny_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_folder), "--paper", "--data", str(data), "--set", "secnods=3"]) == 2
    assert "no benchmark of the paper has a setting 'secnods'; did you mean 'seconds'?" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.eval.paper.evaluate", interrupted)
    run = str(tmp_path / "run")
    assert main(["eval", str(tiny_folder), "--paper", "--data", str(data), "-o", run]) == 130
    assert f"the same command with -o {run} goes on" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["piqa"], ["--shots", "3"], ["--samples", "2"]])
def test_tasks_and_shots_are_the_paper_s(
    tiny_folder: Path, data: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_folder), "--paper", "--data", str(data), *extra]) == 2
    assert "leave out" in capsys.readouterr().err
