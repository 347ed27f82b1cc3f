"""lm-evaluation-harness: its own transformers model on the exported demo, and ours, on the same rows.

Scores must have the same decimals. A likelihood is a float32 sum and its last digits depend on the order of additions
(they change with the batch in transformers too), so likelihoods are compared to 1e-4 (or 10^-6 of
them), perplexities to five digits.
"""

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own


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
    """A data folder with a few rows of each file, of two of its parts where it has any, and all shots of those."""
    folder = tmp_path_factory.mktemp("data")
    for path in sorted((data_dir / "eval").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            kept = list(pick(map(json.loads, lines), 30 if is_full else 1))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (folder / path.name.removesuffix(".gz")).write_text(text, "utf-8")
    return folder


def pick(rows: Iterator[dict[str, Any]], n: int) -> Iterator[dict[str, Any]]:
    """`n` rows of each of the first two parts of a file, and their examples."""
    counts: dict[str, int] = {}
    for row in rows:
        part = next((row[name] for name in ("subject", "lang", "task", "category") if name in row), "")
        if part not in counts and len(counts) == 2:
            continue
        is_example = row.get("split") == "dev"
        counts[part] = counts.get(part, 0) + (not is_example)
        if is_example or counts[part] <= n:
            yield row


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
            batch_size=8, task_manager=manager, bootstrap_iters=0, gen_kwargs={"max_gen_toks": 8},
        )
        for model in ("coterie", "hf")
    }  # fmt: skip


def test_scores_are_those_of_the_transformers_model(results: dict[str, Any]) -> None:
    ours, theirs = results["coterie"]["results"], results["hf"]["results"]
    assert set(ours) == set(theirs) and len(ours) > 10
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isnan(value):
                tolerance = {"rel": 1e-5} if name.startswith("perplexity") else {"abs": 1e-6}
                assert ours[task][name] == pytest.approx(value, **tolerance), f"{task}, {name}"


def test_so_is_every_answer(results: dict[str, Any]) -> None:
    for task, samples in results["hf"]["samples"].items():
        for ours, theirs in zip(results["coterie"]["samples"][task], samples, strict=True):
            for a, b in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
                if isinstance(b, str):
                    assert a == b, task
                else:
                    assert a[0] == pytest.approx(b[0], rel=1e-6, abs=1e-4) and a[1] == b[1], task


def test_rolling_likelihoods_are_those_of_the_transformers_model(exported: Path, data_dir: Path) -> None:
    """Of a text longer than the context, its windows as they are cut there, and of a short and an empty one."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from coterie.eval.harness_model import CoterieLM

    with gzip.open(data_dir / "text/fr.valid.jsonl.gz", "rt", encoding="utf-8") as lines:
        long = json.loads(next(lines))["text"][:2400]
    texts = [long, "Il était une fois", ""]
    requests = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)]
    options = {"pretrained": str(exported), "dtype": "float32", "max_length": 256, "device": "cpu"}
    theirs = HFLM(**options, batch_size=4).loglikelihood_rolling(requests, disable_tqdm=True)
    ours = CoterieLM(**options).loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == [pytest.approx(value, rel=1e-6, abs=1e-4) for value in theirs]
    assert theirs[0] < -1000 and len(texts[0]) == 2400


def harness_metric(task: str, metric: str, group: str) -> tuple[str, str]:
    """Under which names the harness has what `coterie eval` calls so."""
    name = {"truthfulqa.en": f"truthfulqa_{metric}", "truthfulqa.es": f"truthfulqa_es_{metric}"}.get(task, task)
    metric = "acc" if metric in ("mc1", "mc2") else metric
    if task == "bbq" and group:
        return "coterie_bbq", f"{metric}_{group},none"
    return f"coterie_{name}{'_' + group if group else ''}", f"{metric},none"


def test_our_own_runner_finds_the_same(results: dict[str, Any], exported: Path, few: Path) -> None:
    from coterie.api import load
    from coterie.eval.harness_table import FORMS
    from coterie.eval.registry import TASKS
    from coterie.eval.run import evaluate

    kinds = ("multiple_choice", "loglikelihood")
    known = {form.file for form in FORMS.values() if form.fields["output_type"] in kinds}
    report = evaluate(load(exported, dtype="float32"), [name for name in TASKS if name in known], data=few)
    theirs, n_compared = results["hf"]["results"], 0
    for task in report.tasks:
        for metric in task.metrics:
            name, key = harness_metric(task.name, metric.name, metric.group)
            if key in theirs.get(name, {}) and not math.isnan(theirs[name][key]):
                tolerance = {"rel": 1e-5} if metric.name == "perplexity" else {"abs": 1e-6}
                assert metric.value == pytest.approx(theirs[name][key], **tolerance), f"{name}, {key}"
                n_compared += 1
        assert any(
            harness_metric(task.name, m.name, m.group)[1] in theirs[harness_metric(task.name, m.name, m.group)[0]]
            for m in task.metrics
            if not m.group
        ), f"nothing of {task.name} was compared"
    assert n_compared >= 2 * len(report.tasks)


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
