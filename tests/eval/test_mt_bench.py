import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.errors import DataError, RequestError
from coterie.eval.mt_bench import MtBench
from coterie.eval.rows import Files
from coterie.eval.task import Context, TaskResult
from coterie.model import Output

CATEGORIES = ("writing", "math", "stem")
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def lm(make_model: Callable, byte_tokenizer: object) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer, name="tiny")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"question_id": n, "category": c, "turns": [f"Say {n}.", "More."]} for n, c in enumerate(CATEGORIES)]
    rows[1]["reference"] = ["the reference", ""]
    (tmp_path / "mt_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("COTERIE_JUDGE_KEY", KEY)
    return tmp_path


def run(lm: LanguageModel, data: Path, out: str | None = "run", seed: int = 0, **settings: str) -> TaskResult:
    folder = None if out is None else data / out
    context = Context(
        Files(data), run_dir=folder, seed=seed, settings={"max_tokens": "6", "judge_retries": "0", **settings}
    )
    return MtBench(context).run(lm, context)


def test_rated_and_written_down(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str:
        return "[[8]]" if "Answer 2 of assistant" in body["messages"][0]["content"] else "[[4]]"

    with judges.fake_judge(say, models=["a-judge"]) as judge:
        found = run(lm, data, judge=judge.url)
        again = run(lm, data, judge=judge.url)
    values = {(m.name, m.group): m.value for m in found.metrics}
    assert values["rating", ""] == 6.0 and values["rating_turn_1", "math"] == 4.0 and values["rating_turn_2", ""] == 8.0
    assert len(judge.asked) == 6 and again.metrics == found.metrics  # the second run asks nothing
    assert f"judged by a-judge at {judge.url}" in found.notes and found.n_items == 3
    with_reference = [b for b in judge.asked if "the reference" in b["messages"][0]["content"]]
    assert len(with_reference) == 2 and judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(found) and all(KEY not in f.read_text() for f in (data / "run").iterdir())


def test_answers_now_and_a_judge_later(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    found = run(lm, data)
    assert found.metrics == [] and any("--judge URL" in note for note in found.notes)
    before = (data / "run" / "mt_bench.answers.jsonl").read_bytes()
    with judges.fake_judge(lambda body, handler: "[[5]]") as judge:
        assert run(lm, data, judge=judge.url).metrics[0].value == 5.0
    assert (data / "run" / "mt_bench.answers.jsonl").read_bytes() == before


def test_nobody_to_judge_and_nowhere_to_write(lm: LanguageModel, data: Path) -> None:
    found = run(lm, data, out=None)
    assert found.metrics == [] and found.n_items == 0 and found.notes[0].startswith("not run: ")


def test_two_runs_compared_in_both_orders(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str:
        return "[[A]]" if "assistant B" in body["messages"][0]["content"] else "[[5]]"

    with judges.fake_judge(say) as judge:
        run(lm, data, out="a")
        found = run(lm, data, out="b", seed=1, judge=judge.url, against=str(data / "a"))
        assert len(judge.asked) == 6 + 12 - 2  # greedy math is the same text twice, so both orders are one question
    (battles,) = (s for s in found.sections if s.key == "battles")
    assert battles.rows[-1] == ("all", 0, 6, 0, 0.5) and battles.facts["first_place_share"] == 1.0
    rows = [json.loads(line) for line in (data / "b" / "battles.jsonl").read_text().splitlines()]
    assert {(r["model_a"], r["model_b"], r["winner"]) for r in rows} == {("tiny", "tiny (a)", "tie")}


def test_two_runs_compared_by_their_ratings(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: "[[5]]") as judge:
        run(lm, data, out="a", judge=judge.url)
    with judges.fake_judge(lambda body, handler: "[[7]]", models=["kinder"]) as judge:
        found = run(lm, data, out="b", judge=judge.url, against=str(data / "a"), pairwise="ratings")
        assert len(judge.asked) == 6
    assert next(m.value for m in found.metrics if m.name == "win_rate") == 1.0


def test_a_judge_of_nonsense_and_one_that_is_gone(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: "Nice weather!") as judge:
        found = run(lm, data, judge=judge.url)
    assert found.metrics == [] and "6 of 6 verdicts could not be read and count as none" in found.notes
    found = run(lm, data, judge="http://127.0.0.1:1/v1", judge_model="m")
    (note,) = (n for n in found.notes if "did not come" in n)
    assert note.startswith("6 of 6 verdicts did not come (") and "connection refused" in note and "asks again" in note
    with judges.fake_judge(lambda body, handler: "[[9]]") as judge:
        assert run(lm, data, judge=judge.url).metrics[0].value == 9.0  # the same folder, asked again


def test_some_verdicts_are_missing(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str | None:
        text = body["messages"][0]["content"]
        if "Say 2." in text:
            return judges.reply(handler, 400, {"error": {"message": f"too long, {KEY}"}})
        return "[[11]]" if "Say 1." in text and "Answer 2" not in text else "[[6]]"

    with judges.fake_judge(say) as judge:
        found = run(lm, data, judge=judge.url)
    values = {(m.name, m.group): m for m in found.metrics}
    assert values["rating", ""].n == 2 and values["rating_turn_1", ""].n == 1 and ("rating", "stem") not in values
    assert "1 of 6 verdicts could not be read and count as none" in found.notes
    assert any("2 of 6 verdicts did not come (the server answers 400: too long, ***)" in n for n in found.notes)


def test_ctrl_c_while_judging_keeps_what_came(lm: LanguageModel, data: Path, judges: ModuleType) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "mt_bench: judging" and done == 2:
            raise KeyboardInterrupt

    with judges.fake_judge(lambda body, handler: "[[6]]") as judge:
        settings = {"judge": judge.url, "max_tokens": "6", "judge_concurrency": "1"}
        context = Context(Files(data), run_dir=data / "run", settings=settings, progress=stop)
        with pytest.raises(KeyboardInterrupt):
            MtBench(context).run(lm, context)
        assert len((data / "run" / "mt_bench.judgments.jsonl").read_text().splitlines()) == 2
        before = len(judge.asked)
        assert run(lm, data, judge=judge.url).metrics[0].value == 6.0
        assert len(judge.asked) - before == 4


def test_a_limit_takes_every_category_by_turns(lm: LanguageModel, data: Path) -> None:
    rows = [{"question_id": n, "category": c, "turns": ["a"]} for n, c in enumerate("aaabbbc")]
    (data / "mt_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for limit, expected in ((1, [0]), (4, [0, 1, 3, 6]), (5, [0, 1, 3, 4, 6]), (99, [*range(7)])):
        context = Context(Files(data), limit=limit, run_dir=data / f"run{limit}", settings={"max_tokens": "1"})
        assert MtBench(context).run(lm, context).n_items == len(expected)
        lines = (data / f"run{limit}" / "mt_bench.answers.jsonl").read_text().splitlines()
        assert sorted(int(json.loads(line)["id"]) for line in lines) == expected


def test_routing_is_recorded_over_whole_conversations(lm: LanguageModel, data: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.model = lm.model
            self.added: list[tuple[list[int], int, str]] = []

        def add(self, ids: list[int], output: Output, domain: str, **place: Any) -> None:
            self.added.append((list(ids), len(output.hidden_TD), domain))

    recorder = Recorder()
    context = Context(Files(data), run_dir=data / "run", recorder=recorder, settings={"max_tokens": "6"})
    MtBench(context).run(lm, context)
    assert len(recorder.added) == 3 and {domain for *_, domain in recorder.added} == {"mt_bench"}
    for ids, n_rows, _ in recorder.added:
        text = lm.tokenizer.decode(ids)
        assert n_rows == len(ids) and "Say" in text and "More." in text and ids[0] == lm.tokenizer.bos_id


def test_bad_input_is_said_before_any_answer(lm: LanguageModel, data: Path) -> None:
    with pytest.raises(DataError, match=r"holds no mt_bench\.answers\.jsonl"):
        run(lm, data, judge="http://127.0.0.1:1/v1", judge_model="m", against=str(data))
    with pytest.raises(RequestError, match="is not a URL"):
        run(lm, data, judge="nowhere")
    assert not (data / "run").exists()
    (data / "mt_bench.jsonl").write_text('{"question_id": 1, "category": "math", "turns": ["a"]}\n' * 2)
    with pytest.raises(DataError, match="line 2: question_id '1' was there before"):
        run(lm, data)


def test_the_eighty_questions(data_dir: Path) -> None:
    from coterie.eval.mt_bench_answers import read_conversation

    read = Files(data_dir).rows("mt_bench")
    talks = [read_conversation(row, read.where(n)) for n, row in enumerate(read.rows)]
    assert len(talks) == 80 and all(len(c.turns) == len(c.references) == 2 for c in talks)
    assert sum(c.temperature == 0.7 for c in talks) == 20 and sum(c.temperature == 0.1 for c in talks) == 20
