"""Task files for lm-evaluation-harness: what is written, what is left out, what is refused."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from coterie.errors import DataError
from coterie.eval.harness_table import FORMS
from coterie.eval.harness_tasks import write_tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PIQA = {"id": "p", "question": "to boil an egg", "choices": ["heat it", "freeze it"], "answer": 0}


def mmlu(subject: str, split: str, n: int) -> list[dict[str, object]]:
    row = {"subject": subject, "split": split, "question": "2 + 2?", "choices": list("1234"), "answer": 3}
    return [{**row, "id": f"{subject}-{split}-{i}"} for i in range(n)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_only_tasks_whose_rows_are_there_are_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "data/eval/piqa.jsonl", [PIQA, PIQA])
    assert write_tasks(tmp_path / "tasks", tmp_path / "data") == ["coterie_piqa"]
    assert [path.name for path in (tmp_path / "tasks").glob("*.yaml")] == ["coterie_piqa.yaml"]
    text = (tmp_path / "tasks/coterie_piqa.yaml").read_text("utf-8")
    assert 'dataset_path: "json"' in text and "!function coterie.eval.harness_forms.documents" in text
    rows = (tmp_path / "tasks/rows/coterie_piqa.test.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row) for row in rows] == [{k: PIQA[k] for k in ("question", "choices", "answer")}] * 2


def test_a_limit_counts_rows_that_are_scored(tmp_path: Path) -> None:
    rows = [*mmlu("anatomy", "dev", 5), *mmlu("anatomy", "validation", 4), *mmlu("law", "dev", 5)]
    write_rows(tmp_path / "mmlu.jsonl", [*rows, *mmlu("law", "validation", 2)])
    assert write_tasks(tmp_path / "tasks", tmp_path, limit=3) == ["coterie_mmlu"]
    names = sorted(path.name for path in (tmp_path / "tasks/rows").iterdir())
    parts = [f"coterie_mmlu_{subject}.{split}.jsonl" for subject in ("anatomy", "law") for split in ("dev", "test")]
    assert names == parts
    sizes = [len((tmp_path / "tasks/rows" / name).read_text().splitlines()) for name in names]
    assert sizes == [5, 2, 5, 1]
    write_tasks(tmp_path / "fewer", tmp_path, limit=1)  # a subject without a row to score is no task
    assert not (tmp_path / "fewer/coterie_mmlu_law.yaml").exists()


def test_the_harness_reads_what_is_written(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    write_rows(tmp_path / "piqa.jsonl", [PIQA])
    write_rows(tmp_path / "mmlu.jsonl", [*mmlu("law", "dev", 5), *mmlu("law", "validation", 2)])
    write_tasks(tmp_path / "tasks", tmp_path, cache=tmp_path / "cache")
    loaded = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False).load(
        ["coterie_piqa", "coterie_mmlu"]
    )
    task = loaded["tasks"]["coterie_piqa"]
    (doc,) = task.eval_docs
    assert task.doc_to_text(doc) == "Question: to boil an egg\nAnswer:" and task.doc_to_choice(doc) == PIQA["choices"]
    law = loaded["tasks"]["coterie_mmlu_law"]
    context = law.fewshot_context(law.eval_docs[0], 5)
    assert context.startswith("The following are multiple choice questions (with answers) about law.\n\n2 + 2?\nA. 1\n")
    assert context.count("Answer: D\n\n") == 5 and context.endswith("D. 4\nAnswer:")


def test_reading_a_task_file_makes_coterie_a_model_of_the_harness(tmp_path: Path) -> None:
    from lm_eval.api.registry import model_registry
    from lm_eval.tasks._yaml_loader import load_yaml

    write_rows(tmp_path / "piqa.jsonl", [PIQA])
    write_tasks(tmp_path / "tasks", tmp_path)
    load_yaml(tmp_path / "tasks/coterie_piqa.yaml", resolve_func=True)
    assert "coterie" in model_registry and "hf" in model_registry


def test_a_row_without_a_field_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "piqa.jsonl", [PIQA, {"question": "?"}])
    with pytest.raises(DataError, match=r"piqa.jsonl, line 2: there is no field 'choices'"):
        write_tasks(tmp_path / "tasks", tmp_path)


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of agieval, arc_challenge"):
        write_tasks(tmp_path / "tasks", tmp_path)


def test_every_form_keeps_what_its_templates_read() -> None:
    for name, form in FORMS.items():
        text = json.dumps([str(value) for value in form.fields.values()])
        for field in ("context", "question", "choices", "answer"):
            reads = re.search(rf"({{{{|in ){field}\b", text)
            assert not reads or field in form.keep, f"{name}: {field}"
