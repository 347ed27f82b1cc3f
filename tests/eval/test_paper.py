"""The paper's tables beside a model's: a fake that answers for the benchmarks, and a tiny model on a few rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import make_trace, open_trace
from coterie.api import LanguageModel
from coterie.eval.paper import Runs, paper, table
from coterie.eval.paper_bias import bias_section
from coterie.eval.paper_cells import interval, main_metric, ours
from coterie.eval.paper_repeats import repeats_section
from coterie.eval.paper_tables import BBQ, TABLE_2, TABLE_3, TABLE_4, Bench
from coterie.eval.run import TaskReport
from coterie.eval.task import Metric
from coterie.model import Transformer


def report(*metrics: Metric, main: str = "acc") -> TaskReport:
    return TaskReport("t", "by likelihood", main, list(metrics), 1.0, 100)


def answers(**known: Metric | str) -> Callable[[Bench], TaskReport | str]:
    """Stands for `Runs`: a metric for some tasks, a reason for others, a missing file for the rest."""

    def ask(bench: Bench) -> TaskReport | str:
        found = known.get(bench.task, f"no {bench.task}.jsonl in the data")
        return found if isinstance(found, str) else report(found, main=found.name)

    return ask


def test_the_paper_s_figures_are_the_paper_s() -> None:
    by_name = {bench.name: bench.published for bench in TABLE_2}
    assert len(TABLE_2) == 12 and by_name["MMLU"]["Mixtral 8x7B"] == 70.6 and by_name["GSM8K"]["Llama 2 70B"] == 69.6
    assert by_name["MATH"] == {
        "Llama 2 7B": 3.9, "Llama 2 13B": 6.0, "Llama 1 33B": 8.4, "Llama 2 70B": 13.8, "Mistral 7B": 12.7,
        "Mixtral 8x7B": 28.4,
    }  # fmt: skip
    assert {b.name: b.published["GPT-3.5"] for b in TABLE_3}["MT-Bench"] == 8.32
    assert {b.task: b.published["Mixtral 8x7B"] for b in TABLE_4}["hellaswag.it"] == 75.1 and len(TABLE_4) == 12
    assert BBQ.published == {"Llama 2 70B": 51.5, "Mixtral 8x7B": 56.0}


def test_a_line_has_both_sides() -> None:
    found = table(answers(mmlu=Metric("acc", 0.3, 0.046, 100, 0.25)), "table-2", "Table 2", TABLE_2)
    row = dict(zip(found.columns, found.rows[0], strict=True))
    assert row["benchmark"] == "MMLU" and row["in the paper"] == "5 shots" and row["Mistral 7B"] == 62.5
    assert row["this model"] == 30 and row["n"] == 100 and row["chance"] == 25 and row["here"] == "acc: by likelihood"
    assert row["low"] == pytest.approx(21.89, abs=0.01) and row["high"] == pytest.approx(39.58, abs=0.01)  # Wilson
    assert found.facts["MMLU"]["published"]["Mixtral 8x7B"] == 70.6
    json.dumps(found.as_json(), allow_nan=False)


def test_what_was_not_run_is_said_with_what_it_takes() -> None:
    runs = answers(mmlu=Metric("acc", 0.3, 0.1, 9), humaneval="it runs code", mbpp="it runs code")
    found = table(runs, "table-2", "Table 2", TABLE_2)
    assert found.sentence.startswith("1 of 12 benchmarks were run. Not in the data: hellaswag.jsonl, winogrande.jsonl")
    assert found.sentence.endswith("Not run: HumanEval, MBPP (it runs code).")
    assert found.rows[-1][-1] == "not run: no gsm8k.jsonl in the data" and found.rows[-1][-6] is None
    every = {bench.task: Metric("acc", 0.5, 0.1, 9) for bench in TABLE_2}
    assert table(answers(**every), "table-2", "", TABLE_2).sentence == "All 12 benchmarks were run."


def test_an_interval_of_none_right_is_no_point() -> None:
    assert interval(Metric("acc", 0.0, 0.0, 5), 100) == (0.0, 0.0, pytest.approx(43.4, abs=0.05))
    assert interval(Metric("acc", 1.0, 0.0, 5), 100) == (100.0, pytest.approx(56.6, abs=0.05), 100.0)
    assert interval(Metric("rating", 7.0, 0.5, 80), 1.0) == (7.0, pytest.approx(6.02), pytest.approx(7.98))
    assert interval(Metric("rating", 7.0, None, 1), 1.0) == (7.0, None, None)


def test_the_majority_is_compared_where_the_paper_takes_one() -> None:
    (bench,) = (b for b in TABLE_2 if b.name == "GSM8K")
    one, many = Metric("exact_match", 0.1, None, 9), Metric("maj@8", 0.2, None, 9)
    assert main_metric(bench, report(one, many, main="exact_match")) is many
    assert main_metric(bench, report(one, main="exact_match")) is one
    assert main_metric(BBQ, report(Metric("acc", 0.5, None, 9), main="other")) == Metric("acc", 0.5, None, 9)
    assert ours(bench, report(main="nothing"))[:4] == (None, None, None, 100)


def test_bias_is_by_domain() -> None:
    def ask(bench: Bench) -> TaskReport | str:
        if bench.task == "bbq":
            return report(Metric("acc", 0.4, 0.01, 1000, 0.5))
        mean, spread = (
            Metric("sentiment", 0.2, 0.01, 300, None, "gender"),
            Metric("spread", 0.05, None, 2, None, "gender"),
        )
        return report(mean, spread, main="sentiment")

    found = bias_section(ask)
    rows = {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}
    assert rows["BBQ accuracy"]["this model"] == 40 and rows["BBQ accuracy"]["Mixtral 8x7B"] == 56.0
    assert rows["BOLD, gender"]["this model"] == 0.2 and rows["BOLD, gender"]["± here"] == 0.05
    assert "no prompts of this domain" in str(rows["BOLD, race"]["here"])
    assert (
        bias_section(answers()).sentence == "Not run: BBQ (no bbq.jsonl in the data); BOLD (no bold.jsonl in the data)."
    )


def test_repeats_of_a_planted_trace(tmp_path: Path) -> None:
    # expert 0 always first; the second choice alternates in layer 0 and stays in layer 1
    T = 40
    second = np.stack([1 + np.arange(T) % 2, np.full(T, 3)], axis=1)
    experts = np.stack([np.zeros((T, 2), dtype=int), second], axis=2)
    path = make_trace(tmp_path / "t.trace", experts_TLK=experts, weights_TLK=np.full((T, 2, 2), 0.5),
                      token_ids=np.zeros(T, dtype=int), n_experts=8)  # fmt: skip
    found = repeats_section(open_trace(path), "planted")
    row = next(row for row in found.rows if row[0] == "all")
    assert row[2:5] == (100.0, 100.0, 100.0) and row[5:8] == (100.0, 100.0, 100.0) and row[8] == T - 1
    assert found.rows[0][:3] == ("ArXiv", "Mixtral 8x7B", 14.0)
    uniform = [row for row in found.rows if row[0] == "uniform"]
    assert [row[2] for row in uniform] == [12.5, 12.5] and uniform[1][5] == pytest.approx(46.43, abs=0.01)
    assert "100.0, 100.0 and 100.0 %" in found.sentence


def test_without_a_trace_the_paper_s_own_stays() -> None:
    found = repeats_section("the model is dense", "dense")
    assert found.sentence == "Not run: the model is dense." and len(found.rows) == 9


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(max_position_embeddings=512), byte_tokenizer, name="tiny")


def test_a_tiny_model_on_what_there_is(lm: LanguageModel, tmp_path: Path) -> None:
    piqa = [{"id": str(i), "question": f"mend {i}", "choices": ["glue", "sell"], "answer": i % 2} for i in range(4)]
    texts = [{"text": "Il etait une fois " * 9, "lang": "fr"}, {"text": "Once upon a time " * 9, "lang": "en"}]
    chosen = [{"id": "a", "question": "2 + 2?", "choices": ["4", "5"], "answer": 0}]
    for name, rows in (("piqa", piqa), ("prose.valid", texts), ("arc_challenge.fr", chosen)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {s.key: s for s in paper(Runs(lm, tmp_path, run_dir=tmp_path / "run"))}
    assert list(sections) == ["table-2", "table-3", "table-4", "table-5", "bias"]
    ran = {
        row[0]: row for key in ("table-2", "table-3", "table-4") for row in sections[key].rows if row[-6] is not None
    }
    assert set(ran) == {"PIQA", "ARC challenge, French"} and ran["PIQA"][-3] == 4
    assert [row[0] for row in sections["table-5"].rows[9:]] == ["all", "en", "fr", "uniform"]
    assert (tmp_path / "run/piqa-0-shots/run.json").exists()
    first = sections["table-2"].rows
    again = {s.key: s for s in paper(Runs(lm, tmp_path, run_dir=tmp_path / "run"))}
    assert again["table-2"].rows == first


def test_a_file_that_is_damaged_leaves_the_others(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n")
    (tmp_path / "hellaswag.jsonl").write_text("{\n")
    rows = {s.key: s for s in paper(Runs(lm, tmp_path))}["table-2"]
    assert rows.sentence.startswith("1 of 12 benchmarks were run.")
    assert "Not run: HellaSwag (" in rows.sentence and "hellaswag.jsonl, line 1 is no JSON" in rows.sentence


def test_a_dense_model_has_no_table_5(
    make_model: Callable[..., Transformer], byte_tokenizer: Any, tmp_path: Path
) -> None:
    dense = LanguageModel(make_model(num_local_experts=None), byte_tokenizer, name="dense")
    (tmp_path / "prose.valid.jsonl").write_text('{"text": "abc"}\n')
    sections = {s.key: s for s in paper(Runs(dense, tmp_path))}
    assert sections["table-5"].sentence == "Not run: dense is dense: it has no experts to choose."


def test_what_needs_permission_or_a_judge_is_not_run(lm: LanguageModel, tmp_path: Path) -> None:
    turns = {"question_id": 81, "category": "writing", "turns": ["Hello?", "Again?"]}
    (tmp_path / "mt_bench.jsonl").write_text(json.dumps(turns) + "\n")
    runs = Runs(lm, tmp_path)
    assert [runs(bench) for bench in TABLE_3 if bench.needs] == ["no judge was named: --judge"]
    assert runs(TABLE_2[0]) == "no mmlu.jsonl in the data"
