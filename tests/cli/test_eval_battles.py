"""`coterie eval --battles`, and `--judge` from the command line to the table."""

import gzip
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from coterie.cli.main import main


@pytest.fixture
def battles(tmp_path: Path) -> Path:
    rows = [{"model_a": a, "model_b": b, "winner": w} for a, b, w in (
        *[("strong", "weak", "model_a")] * 20, *[("weak", "strong", "model_a")] * 5,
        *[("strong", "middle", "tie")] * 9, *[("middle", "weak", "model_a")] * 6, ("weak", "middle", "model_a"),
    )]  # fmt: skip
    path = tmp_path / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_table(battles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--battles", str(battles)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "41 battles, of which 9 are ties" in lines[0]
    assert lines[1].split()[:3] == ["rank", "model", "rating"] and lines[-1].split()[1] == "weak"
    assert "Bradley-Terry" in err and "Elo" in err


def test_json_has_everything_and_the_anchor_holds(battles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--battles", str(battles), "--json", "--seed", "3", "--set", "anchor=weak:1114"]
    assert main([*command, "--set", "rounds=50", "--set", "orders=7"]) == 0
    found = json.loads(capsys.readouterr().out)
    ratings = {r["model"]: r for r in found["ratings"]}
    assert ratings["weak"]["rating"] == ratings["weak"]["low"] == pytest.approx(1114)
    assert (found["rounds"], found["orders"], found["seed"], found["n_battles"]) == (50, 7, 3, 41)
    assert found["pairs"][2] == {
        "a": "strong",
        "b": "weak",
        "wins": 20,
        "ties": 0,
        "losses": 5,
        "expected": pytest.approx(0.8, abs=0.05),
    }
    assert len(found["files"][0]["sha256"]) == 64


def test_two_files_are_one_tournament(battles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tmp_path / "more.jsonl.gz"
    more.write_bytes(gzip.compress(b'{"model_a": "weak", "model_b": "new", "winner": "tie"}\n'))
    assert main(["eval", "--battles", str(battles), "--battles", str(more), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ratings"]) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"model_a": "x", "model_b": "y"}', "line 42: there is no field 'winner'"),
        ('{"model_a": "x", "model_b": "y", "winner": "tie"}', "no chain of battles leads from"),
        ("nonsense", "line 42 is no JSON"),
    ],
)
def test_mistakes_are_one_sentence(battles: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    battles.write_text(battles.read_text() + line + "\n")
    assert main(["eval", "--battles", str(battles)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo"], "neither a model nor a task"),
        (["--set", "ancor=x:1"], "did you mean 'anchor'?"),
        (["--set", "anchor=x"], "expected NAME:RATING"),
        (["--set", "anchor=nobody:1000"], "'nobody' fought no battle"),
        (["--set", "rounds=1"], "rounds=1: expected a whole number from 10"),
        (["--limit", "5", "--run-code"], "nothing reads --limit, --run-code"),
        (["--shots", "0", "-o", "run", "--data", "x"], "nothing reads --data, --shots, --out"),
        (["--plot", "ratings.pdf"], "ends with .svg or .png"),
    ],
)
def test_wrong_options(battles: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--battles", str(battles), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_plot(battles: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from coterie.cli.eval_battles import print_battles

    for name, begins in (("r.svg", b"<?xml"), ("r.png", b"\x89PNG")):
        print_battles([battles], {"rounds": "20"}, seed=0, as_json=False, plot=tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    ET.parse(tmp_path / "r.svg")


def test_a_judge_from_the_command_line(
    tiny_folder: Path, tmp_path: Path, judges: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two models answer, the second run is rated and compared with the first, and the battles become ratings."""
    rows = [{"question_id": n, "category": c, "turns": ["Say it.", "Again."]} for n, c in enumerate(("math", "stem"))]
    (tmp_path / "mt_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("COTERIE_JUDGE_KEY", "sk-very-secret")

    def say(body: dict, handler: object) -> str:
        return "[[B]]" if "assistant B" in body["messages"][0]["content"] else "[[3]]"

    command = ["eval", str(tiny_folder), "mt_bench", "--data", str(tmp_path), "--set", "max_tokens=5"]
    with judges.fake_judge(say) as judge:
        assert main([*command, "-o", str(tmp_path / "one")]) == 0
        assert "add --judge URL" in capsys.readouterr().out
        second = [*command, "-o", str(tmp_path / "two"), "--judge", judge.url, "--seed", "1"]
        assert main([*second, "--set", f"against={tmp_path / 'one'}"]) == 0
    out, err = capsys.readouterr()
    assert "3.0000" in out and "judged by default" in out
    everything = "".join(p.read_text() for p in (tmp_path / "two").iterdir()) + out + err
    assert "sk-very-secret" not in everything and judge.headers[0]["Authorization"].endswith("sk-very-secret")
    assert main(["eval", "--battles", str(tmp_path / "two" / "battles.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_battles"] == found["n_ties"] == 4 and {r["rating"] for r in found["ratings"]} == {1000.0}
