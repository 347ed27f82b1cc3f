import threading
import time
from types import ModuleType

import pytest

from coterie.eval.endpoint import Endpoint
from coterie.eval.judge import Judge, Outcome, Question
from coterie.eval.judge_prompts import RATING_REMINDER, read_rating


def questions(n: int) -> list[Question]:
    asks = [[{"role": "user", "content": f"rate {i}"}] for i in range(n)]
    return [Question(str(i), messages, read_rating, RATING_REMINDER) for i, messages in enumerate(asks)]


def judged(url: str, n: int, concurrency: int = 4, **options: float) -> tuple[Judge, dict[str, Outcome]]:
    judge = Judge(Endpoint(url, "m", pause=0.01, **{"retries": 0, "timeout": 5.0, **options}), concurrency)
    return judge, {question.key: outcome for question, outcome in judge.ask_all(questions(n))}


def test_every_question_once_and_several_at_once(judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str:
        time.sleep(0.05)
        return f"[[{1 + int(body['messages'][0]['content'].split()[1]) % 10}]]"

    with judges.fake_judge(say) as server:
        judge, found = judged(server.url, 20, concurrency=5)
    assert {k: o.value for k, o in found.items()} == {str(i): 1.0 + i % 10 for i in range(20)}
    assert len(server.asked) == 20 and judge.counts == {"": 20}
    assert 2 <= server.most_at_once < 10  # of 5 under way; the server learns a little later that one has ended


def test_nonsense_is_asked_again_with_a_reminder_and_then_counted(judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str:
        if body["messages"][0]["content"] == "rate 0":
            return "[[eleven]]"
        return "I liked it" if len(body["messages"]) == 1 else "[[6]]"

    with judges.fake_judge(say) as server:
        judge, found = judged(server.url, 2)
    assert found["0"].value is None and found["0"].reason == "nonsense" and "[[eleven]]" in found["0"].said
    assert found["1"].value == 6.0 and "I liked it" in found["1"].said
    reminded = [body["messages"] for body in server.asked if len(body["messages"]) > 1]
    assert len(server.asked) == 4 and all(m[1]["role"] == "assistant" and "[[4]]" in m[2]["content"] for m in reminded)
    assert judge.counts == {"nonsense": 1, "": 1}


def test_one_failure_is_one_missing_verdict(judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str | None:
        if body["messages"][0]["content"] == "rate 3":
            return judges.reply(handler, 500, {"error": {"message": "oh"}})
        return "[[5]]"

    with judges.fake_judge(say) as server:
        judge, found = judged(server.url, 8)
    assert judge.counts == {"": 7, "unanswered": 1} and found["3"].said == "the server answers 500: oh"
    assert not judge.why_gone


def test_a_judge_that_is_gone_is_not_asked_for_ever(judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: judges.reply(handler, 503, {})) as server:
        judge, found = judged(server.url, 60, concurrency=3)
    assert len(server.asked) <= 8 and len(found) == 60 and judge.counts == {"unanswered": 60}
    assert "in a row got no answer" in judge.why_gone and found["59"].said.startswith("not asked: ")


def test_a_refused_key_ends_it_at_once(judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: judges.reply(handler, 401, {})) as server:
        judge, found = judged(server.url, 30, concurrency=1)
    assert len(server.asked) == 1 and len(found) == 30 and "COTERIE_JUDGE_KEY" in judge.why_gone


def test_leaving_the_loop_ends_what_is_under_way(judges: ModuleType) -> None:
    gone = threading.Event()

    def say(body: dict, handler: object) -> str | None:
        return "[[5]]" if body["messages"][0]["content"] == "rate 0" else (gone.wait(30) and None)

    with judges.fake_judge(say) as server:
        judge = Judge(Endpoint(server.url, "m", timeout=30.0), 4)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            for _ in judge.ask_all(questions(10)):
                raise KeyboardInterrupt
        gone.set()
        assert time.monotonic() - started < 5
