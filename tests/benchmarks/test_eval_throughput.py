"""The comparison with lm-evaluation-harness runs, and finds the same scores."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_sides_score_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    spec = importlib.util.spec_from_file_location("eval_throughput", FOLDER / "eval_throughput.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    row = {"context": "It rained.", "question": "cause", "choices": ["It was grey.", "Ed ran."], "answer": 0}
    rows = [{"id": str(n), **row, "context": f"It rained for {n} days."} for n in range(3)]
    (tmp_path / "copa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "out.json"
    script.main(["--data", str(tmp_path), "--tasks", "copa", "--rounds", "1", "--threads", "1", "--out", str(out)])
    (task,) = json.loads(out.read_text())["tasks"]
    assert task["same"] and task["questions"] == 3 and task["ratio"] > 0
    assert "same scores" in capsys.readouterr().out
