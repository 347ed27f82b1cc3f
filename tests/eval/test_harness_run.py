"""Tasks inside lm-evaluation-harness: its figures as a report of ours, the same rows as our own runner."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from coterie.api import LanguageModel
from coterie.errors import DataError, RequestError
from coterie.eval.harness_run import evaluate_in_harness, forms_of
from coterie.eval.run import evaluate
from coterie.model import Transformer

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(max_position_embeddings=512), byte_tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    piqa = [{"id": f"p{i}", "question": f"to mend a {w}", "choices": ["glue it", "sell it all"], "answer": i % 2}
            for i, w in enumerate(("cup", "chair", "shoe", "kite", "drum"))]  # fmt: skip
    lambada = [{"id": f"l{i}", "context": f"The {w} said", "answer": w} for i, w in enumerate(("king", "cat", "sea"))]
    exams = [
        {"id": f"{lang}{i}", "lang": lang, "question": f"{i} + 1?", "choices": ["3", "4", "17"], "answer": 0}
        for lang in ("de", "it")
        for i in range(4)
    ]
    for name, rows in (("piqa", piqa), ("lambada", lambada), ("exams", exams)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("limit", [None, 3])
def test_both_runners_find_the_same(lm: LanguageModel, data: Path, limit: int | None) -> None:
    names = ["piqa", "lambada", "exams"]
    theirs = evaluate_in_harness(lm, names, data=data, limit=limit)
    ours = evaluate(lm, names, data=data, limit=limit)
    for a, b in zip(theirs.tasks, ours.tasks, strict=True):
        assert a.name == b.name and a.n_items == b.n_items and "lm-eval" in a.protocol
        expected = {(m.name, m.group): m for m in b.metrics}
        assert {(m.name, m.group) for m in a.metrics} == set(expected)
        for metric in a.metrics:
            other = expected[metric.name, metric.group]
            assert metric.value == pytest.approx(other.value, rel=1e-5) and metric.n == other.n
            if other.stderr is None:  # of one answer
                assert metric.stderr is None
            else:
                assert metric.stderr == pytest.approx(other.stderr, rel=1e-4)


def test_a_run_is_kept_and_goes_on(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    first = evaluate_in_harness(lm, ["piqa"], data=data, run_dir=tmp_path / "run", settings={"harness": "lm-eval"})
    document = json.loads((tmp_path / "run/run.json").read_text())
    assert document["arguments"]["settings"] == {"harness": "lm-eval"} and document["tasks"]["piqa"]["items"] == 5
    assert list((tmp_path / "run").glob("harness*.db"))
    again = evaluate_in_harness(lm, ["piqa"], data=data, run_dir=tmp_path / "run", settings={"harness": "lm-eval"})
    assert [m.value for m in again.tasks[0].metrics] == [m.value for m in first.tasks[0].metrics]


def test_steps_are_told_by_task(lm: LanguageModel, data: Path) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate_in_harness(lm, ["piqa"], data=data, progress=lambda *step: told.append(step))
    assert told[-1] == ("piqa", 10, 10)  # two choices of five questions


def test_tasks_are_named_by_form_or_file() -> None:
    assert forms_of(["piqa", "truthfulqa.en", "piqa"]) == ["piqa", "truthfulqa_mc1", "truthfulqa_mc2"]
    assert "lambada" in forms_of(["all"]) and "lambada" not in forms_of(["multiple-choice"])
    with pytest.raises(RequestError, match=r"'pika' has no form.*did you mean 'piqa'"):
        forms_of(["pika"])


def test_what_the_harness_cannot_do_is_refused(lm: LanguageModel, data: Path) -> None:
    with pytest.raises(RequestError, match="piqa has 4 rows for examples, but 9 shots"):
        evaluate_in_harness(lm, ["piqa"], data=data, shots=9)
    with pytest.raises(DataError, match="no data folder was named"):
        evaluate_in_harness(lm, ["piqa"], data=None)
    with pytest.raises(RequestError, match="samples is not for harness=lm-eval"):
        evaluate_in_harness(lm, ["piqa"], data=data, samples=4)
