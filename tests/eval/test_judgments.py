from pathlib import Path
from types import ModuleType

from coterie.eval.endpoint import Endpoint
from coterie.eval.journal import Journal
from coterie.eval.judge import Judge
from coterie.eval.judge_prompts import RATING_REMINDER, read_rating
from coterie.eval.judgments import Sought, ask_all


def sought(*words: str) -> list[Sought]:
    return [
        Sought({"question_id": w}, [{"role": "user", "content": f"rate {w}"}], read_rating, RATING_REMINDER)
        for w in words
    ]


def test_what_was_judged_is_not_asked_again_and_what_was_not_is(judges: ModuleType, tmp_path: Path) -> None:
    is_well = False

    def say(body: dict, handler: object) -> str:
        word = body["messages"][0]["content"].split()[1]
        return "hm" if word == "b" and not is_well else f"[[{'abc'.index(word) + 1}]]"

    def run(model: str = "m") -> tuple[list[float | str | None], int, Judge]:
        before, judge = len(server.asked), Judge(Endpoint(server.url, model, pause=0.01))
        with Journal(tmp_path / "j.jsonl") as journal:
            seen: list[tuple[int, int]] = []
            values = ask_all(judge, journal, sought("a", "b", "c"), lambda d, t: seen.append((d, t)))
        assert seen[-1] == (3, 3)
        return values, len(server.asked) - before, judge

    with judges.fake_judge(say) as server:
        values, n_asked, judge = run()
        assert values == [1.0, None, 3.0] and n_asked == 4 and judge.counts == {"": 2, "nonsense": 1}
        is_well = True
        values, n_asked, judge = run()
        assert values == [1.0, 2.0, 3.0] and n_asked == 1 and judge.counts == {"": 3}
        assert run()[1] == 0
        assert run("another judge")[1] == 3
    with Journal(tmp_path / "j.jsonl") as journal:
        assert {row["judge"] for row in journal.rows} == {"m", "another judge"}
        assert [row["reason"] for row in journal.rows if row["question_id"] == "b"] == ["nonsense", "", ""]
