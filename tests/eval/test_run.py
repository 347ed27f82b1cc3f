"""Evaluations of a tiny model over rows made here: figures, resuming, and what is refused before anything is read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.analysis.trace import open_trace
from coterie.api import LanguageModel
from coterie.engine.record import Recorder
from coterie.errors import ContextError, DataError, RequestError
from coterie.eval import run as module
from coterie.eval.ask import Asker
from coterie.eval.run import evaluate
from coterie.eval.run_file import read_run
from coterie.model import Transformer

ROWS = [
    {"id": f"r{n}", "question": f"Is {n} even", "choices": ["yes", "no way"], "answer": n % 2} for n in range(12)
]  # fmt: skip


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "piqa.jsonl", ROWS)
    write(
        tmp_path / "data" / "exams.jsonl", [{**row, "lang": "defr"[n % 4 // 2 * 2 :][:2]} for n, row in enumerate(ROWS)]
    )
    return tmp_path / "data"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def by_hand(lm: LanguageModel, rows: list[dict[str, Any]]) -> float:
    right = 0
    for row in rows:
        scores = lm.score(f"Question: {row['question']}\nAnswer:", [f" {choice}" for choice in row["choices"]])
        right += (scores[1].logprob > scores[0].logprob) == row["answer"]
    return right / len(rows)


def test_a_score_is_what_asking_one_by_one_gives(lm: LanguageModel, data: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = evaluate(lm, ["piqa"], data=data, progress=lambda *about: told.append(about))
    (task,) = report.tasks
    assert task.headline is not None and task.headline.value == by_hand(lm, ROWS)
    assert (task.headline.n, task.headline.chance, task.n_items, task.n_resumed) == (12, 0.5, 12, 0)
    assert told[0] == ("piqa", 0, 12) and told[-1] == ("piqa", 12, 12)


def test_a_limit_takes_of_every_group_by_turns(lm: LanguageModel, data: Path) -> None:
    (task,) = evaluate(lm, ["exams"], data=data, limit=5).tasks
    assert {m.group: m.n for m in task.metrics if m.name == "acc"} == {"": 5, "de": 3, "fr": 2}


def test_a_group_runs_what_is_there_and_says_what_is_not(lm: LanguageModel, data: Path) -> None:
    report = evaluate(lm, ["multiple-choice", "piqa"], data=data, limit=2)
    assert [task.name for task in report.tasks] == ["piqa", "exams"]
    assert any("hellaswag needs hellaswag.jsonl" in sentence for sentence in report.left_out)


def test_run_json_says_everything(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    report = evaluate(lm, ["piqa"], data=data, limit=4, seed=3, run_dir=tmp_path / "run")
    document = read_run(tmp_path / "run")
    assert document == json.loads(json.dumps(report.document))
    assert document["arguments"]["tasks"] == ["piqa"] and document["arguments"]["seed"] == 3
    assert set(document["files"]) == {"piqa.jsonl"} and len(document["files"]["piqa.jsonl"]["sha256"]) == 64
    task = document["tasks"]["piqa"]
    assert task["items"] == 4 and task["seconds"] >= 0 and task["protocol"].startswith("0 shots")
    assert {"name", "value", "stderr", "n", "chance", "group"} == set(task["metrics"][0])


def test_an_interrupted_run_goes_on_where_it_stopped(
    lm: LanguageModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(lm, ["piqa"], data=data)
    n_asked: list[int] = []

    class Interrupted(Asker):
        def ask(self, items: Any, domain: str, save: Any) -> None:
            n_asked.append(len(items))

            def stop_after_five(item: Any, answers: Any) -> None:
                save(item, answers)
                if len(n_asked) == 1 and item.id == items[4].id:
                    raise KeyboardInterrupt

            for item in items:
                super().ask([item], domain, stop_after_five)

    monkeypatch.setattr(module, "Asker", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, ["piqa"], data=data, run_dir=tmp_path)
    assert not (tmp_path / "run.json").exists()
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"task": "piqa", "id": "r5", "ask')  # cut off while it was written
    again = evaluate(lm, ["piqa"], data=data, run_dir=tmp_path)
    assert n_asked == [12, 7] and again.tasks[0].n_resumed == 5
    assert [m.value for m in again.tasks[0].metrics] == [m.value for m in whole.tasks[0].metrics]
    evaluate(lm, ["piqa"], data=data, run_dir=tmp_path, limit=3)
    assert n_asked == [12, 7, 0]


def test_another_form_of_the_question_is_asked_anew(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    evaluate(lm, ["piqa"], data=data, run_dir=tmp_path)
    assert evaluate(lm, ["piqa"], data=data, run_dir=tmp_path, shots=1).tasks[0].n_resumed == 0


def test_a_run_of_another_model_is_refused(
    lm: LanguageModel, data: Path, tmp_path: Path, make_model: Callable[..., Transformer], byte_tokenizer: Any
) -> None:
    evaluate(lm, ["piqa"], data=data, run_dir=tmp_path)
    other = LanguageModel(make_model(seed=1), byte_tokenizer)
    with pytest.raises(DataError, match="another model"):
        evaluate(other, ["piqa"], data=data, run_dir=tmp_path)
    with pytest.raises(DataError, match="another seed"):
        evaluate(lm, ["piqa"], data=data, run_dir=tmp_path, seed=1)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["piqua"], {}, "'piqua' is no task; did you mean 'piqa'.*here are piqa, exams"),
        (["winogrande"], {}, r"winogrande\.jsonl is not in .*it has exams, piqa"),
        (["piqa"], {"settings": {"colour": "red"}}, "no setting 'colour' for these tasks, and none of these"),
        (["perplexity"], {"settings": {"strid": "9"}}, "no setting 'strid'.*did you mean 'stride'"),
        (["piqa"], {"limit": 0}, "limit is 0"),
        (["piqa"], {"shots": -1}, "shots is -1"),
        (["truthfulqa"], {}, "nothing of truthfulqa can run"),
    ],
)
def test_mistakes_are_sentences(
    lm: LanguageModel, data: Path, tasks: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((DataError, RequestError), match=message):
        evaluate(lm, tasks, data=data, run_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_broken_row_is_named_before_anything_is_asked(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    write(data / "piqa.jsonl", [*ROWS, {**ROWS[0], "answer": 2}])
    with pytest.raises(DataError, match=r"piqa\.jsonl, line 13: answer is 2, expected a whole number from 0 to 1"):
        evaluate(lm, ["exams", "piqa"], data=data, run_dir=tmp_path / "run", limit=1)
    assert not (tmp_path / "run").exists()


def test_notes_say_what_was_cut_and_what_changed_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    write(tmp_path / "lambada.jsonl", [{"context": "x" * 400, "answer": "y"}])
    (task,) = evaluate(lm, ["lambada"], data=tmp_path, shots=2).tasks
    assert task.notes == [
        "takes no shots, so --shots changed nothing",
        "1 prompts were longer than the context of 256 tokens and lost their beginning",
    ]


def test_notes_say_which_options_changed_nothing_in_a_file_of_one_s_own(lm: LanguageModel, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [{**row, "id": f"{n}"} for n, row in enumerate(ROWS[:3])])
    short = write(tmp_path / "short.jsonl", [{"question": "x", "answer": "y"}])
    choices, answers = evaluate(lm, [str(few), str(short)], shots=9, samples=2, limit=1).tasks
    nothing = "draws no samples, so --samples changed nothing"
    assert choices.notes[:2] == [nothing, "has too few rows for so many shots: at least one question has only 2"]
    assert answers.notes == ["takes no shots, so --shots changed nothing", nothing]
    assert evaluate(lm, [str(few)], shots=2).tasks[0].notes == []


def test_a_file_whose_name_is_not_utf_8_is_a_task_and_repeated_by_its_name(lm: LanguageModel, tmp_path: Path) -> None:
    names = [str(tmp_path / os.fsdecode(name)) for name in (b"n\xff.jsonl", b"n\xff.txt")]
    write(Path(names[0]), ROWS[:2])
    Path(names[1]).write_text("a text of its own")
    with Recorder(lm, tmp_path / "a.trace") as recorder:
        evaluate(lm, names, run_dir=tmp_path / "run", recorder=recorder)
    document = read_run(tmp_path / "run")
    assert list(document["tasks"]) == ["n?", "perplexity"] and document["arguments"]["tasks"] == names
    assert evaluate(lm, names, run_dir=tmp_path / "run").tasks[0].n_resumed == 2
    trace = open_trace(tmp_path / "a.trace")
    assert trace.domains == ["n?"]
    trace.close()


def test_of_several_tasks_one_that_stops_leaves_the_others(lm: LanguageModel, data: Path) -> None:
    write(data / "piqa.jsonl", [{**ROWS[0], "choices": ["x", "y" * 300]}])
    message = r"piqa, item r0: a continuation is 301 tokens, but the model's context is 256"
    report = evaluate(lm, ["piqa", "exams"], data=data)
    assert [task.name for task in report.tasks] == ["exams"]
    assert [s.startswith("piqa stopped: piqa, item r0: a continuation is 301") for s in report.left_out] == [True]
    with pytest.raises(ContextError, match=message):
        evaluate(lm, ["piqa"], data=data)


def test_the_seconds_of_work_add_up_over_the_parts_of_a_run(lm: LanguageModel, tmp_path: Path) -> None:
    """A perplexity that was interrupted and went on is not said to have taken the second part's time alone."""
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a king. " * 4, encoding="utf-8")
    out = tmp_path / "run"
    options = {"run_dir": out, "settings": {"files": str(text), "lengths": "16"}}
    first = evaluate(lm, ["perplexity"], **options).tasks[0].seconds
    rows = (out / "answers.jsonl").read_text().splitlines()
    planted = json.loads(rows[-1]) | {"seconds": 1000.0}
    (out / "answers.jsonl").write_text("\n".join([*rows[:-1], json.dumps(planted)]) + "\n")
    assert 0 < first < 1000 < evaluate(lm, ["perplexity"], **options).tasks[0].seconds
