"""docs/evaluation.md has the figures of the runs it is made from, and says what was not run."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluation", FOLDER / "evaluation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metric(name: str, value: float, group: str = "", chance: float | None = 0.25) -> dict[str, Any]:
    return {"name": name, "value": value, "stderr": 0.01, "n": 1234, "chance": chance, "group": group}


def document(**tasks: Any) -> dict[str, Any]:
    return {
        "arguments": {
            "model": "demo", "tasks": ["all"], "limit": 9, "shots": None, "samples": None, "seed": 3, "run_code": True,
            "settings": {"a": "b"},
        },
        "model": {"name": "demo", "dtype": "float32", "fingerprint": "f00"},
        "machine": {"threads": 2, "processor": "x86_64"},
        "versions": {"coterie": "0.1.0"},
        "tasks": tasks,
        "left_out": ["math needs math.jsonl"],
    }  # fmt: skip


def task(*metrics: dict[str, Any], sections: Any = ()) -> dict[str, Any]:
    return {
        "metric": "acc", "protocol": "a | b", "metrics": list(metrics), "seconds": 1.25, "notes": ["2 were cut"],
        "sections": list(sections),
    }  # fmt: skip


def test_the_page_of_runs(script: ModuleType) -> None:
    section = {
        "title": "By length", "sentence": "It falls.", "columns": ["x", "y"], "rows": [["a", 0.5], ["b", None]],
        "note": "How.",
    }  # fmt: skip
    runs = [
        document(piqa=task(metric("acc", 0.9)), copa=task(metric("acc", 0.25))),
        document(piqa=task(metric("acc", 0.5), metric("acc", 0.75, "part"), sections=[section])),
    ]
    page = script.page(runs)
    assert "| piqa | acc | 0.5000 | 0.0100 | 0.2500 | 1,234 | 1.2 | a \\| b |" in page
    assert "0.9000" not in page and "| part | 0.7500 | 0.0100 | 0.2500 | 1,234 |" in page
    assert "coterie eval demo all --limit 9 --seed 3 --run-code --set a=b" in page
    assert "Of 2 multiple-choice scores with a chance level, 1 are above it" in page
    assert "Not run: math needs math.jsonl." in page and "piqa: 2 were cut." in page
    assert "### By length\n\nIt falls.\n\n| x | y |\n|---|---|\n| a | 0.5 |\n| b | – |" in page


def test_the_tables_of_the_paper(script: ModuleType) -> None:
    section = {"title": "Table 2", "sentence": "S.", "columns": ["x"], "rows": [["a"]], "note": ""}
    page = script.page([document(copa=task(metric("acc", 0.25)))], {"sections": [section]})
    assert "## Beside the paper\n\n### Table 2" in page


def test_without_a_run_there_is_the_text(script: ModuleType, tmp_path: Path) -> None:
    script.main(["-o", str(tmp_path / "x.md")])
    text = (tmp_path / "x.md").read_text()
    assert text.startswith("# Evaluation") and "## What" not in text
