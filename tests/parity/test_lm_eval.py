"""lm-evaluation-harness: its own transformers model on the exported demo, and ours, on the same rows.

Scores must have the same decimals. A likelihood is a float32 sum and its last digits depend on the order of additions
(they change with the batch in transformers too), so likelihoods are compared to 1e-4, perplexities to six digits.
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

N_ROWS = 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as transformers reads it, in float32."""
    from coterie.checkpoint.convert import convert
    from coterie.checkpoint.hub import find_model

    folder = tmp_path_factory.mktemp("exported") / "demo"
    convert(find_model("demo"), folder, to="huggingface", type="f32")
    return folder


@pytest.fixture(scope="module")
def few(data_dir: Path, tmp_path_factory: pytest.TempPathFactory, is_full: bool) -> Path:
    """A data folder of the first rows of each file (and the examples of MMLU's first subjects)."""
    folder = tmp_path_factory.mktemp("data")
    for path in sorted((data_dir / "eval").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = list(islice(lines, 60 if is_full else 9 if path.name.startswith("mmlu") else N_ROWS))
        (folder / path.name.removesuffix(".gz")).write_text("".join(rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def results(exported: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the harness finds with each of the two models."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from coterie.eval.harness import register
    from coterie.eval.harness_tasks import write_tasks

    register()
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("tasks")
    names = write_tasks(folder, few, cache=folder / "cache")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    yield {
        model: lm_eval.simple_evaluate(
            model=model, model_args={"pretrained": str(exported), "dtype": "float32"}, tasks=names, device="cpu",
            batch_size=8, task_manager=manager, bootstrap_iters=0,
        )
        for model in ("coterie", "hf")
    }  # fmt: skip


def test_scores_are_those_of_the_transformers_model(results: dict[str, Any]) -> None:
    ours, theirs = results["coterie"]["results"], results["hf"]["results"]
    assert set(ours) == set(theirs) and len(ours) > 10
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                tolerance = {"rel": 2e-6} if name.startswith("perplexity") else {"abs": 1e-6}
                assert ours[task][name] == pytest.approx(value, **tolerance), f"{task}, {name}"


def test_so_is_every_answer(results: dict[str, Any]) -> None:
    for task, samples in results["hf"]["samples"].items():
        for ours, theirs in zip(results["coterie"]["samples"][task], samples, strict=True):
            for a, b in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
                if isinstance(b, str):
                    assert a == b, task
                else:
                    assert a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1], task


@pytest.mark.full  # it reads all its own task files first, which takes 20 s
def test_the_harness_own_command_finds_coterie(few: Path, tmp_path: Path) -> None:
    from coterie.eval.harness_tasks import write_tasks

    write_tasks(tmp_path / "tasks", few, limit=2, cache=tmp_path / "cache")
    command = [sys.executable, "-m", "lm_eval", "--model", "coterie", "--model_args", "pretrained=demo"]
    command += ["--tasks", str(tmp_path / "tasks/coterie_copa.yaml"), "--output_path", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("out*.json")
    found = json.loads(path.read_text())
    assert found["n-samples"]["coterie_copa"]["effective"] == 2 and found["config"]["model"] == "coterie"
