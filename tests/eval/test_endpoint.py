import threading
import time
from email.utils import formatdate
from types import ModuleType
from typing import Any

import pytest

from coterie.eval.endpoint import Endpoint, Unanswered

ASK = [{"role": "user", "content": "How good?"}]


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, **{"model": "m", "pause": 0.01, "timeout": 5.0, **options})


def test_what_is_sent_and_what_comes_back(judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: "well: [[7]]") as judge:
        assert endpoint(judge.url, key="sk-secret").ask(ASK) == "well: [[7]]"
    sent = judge.asked[0]
    assert sent["path"] == "/v1/chat/completions" and sent["model"] == "m" and sent["messages"] == ASK
    assert sent["temperature"] == 0 and sent["max_tokens"] == 2048
    assert judge.headers[0]["Authorization"] == "Bearer sk-secret"


def test_without_a_key_none_is_sent(judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: "x") as judge:
        endpoint(judge.url).ask(ASK)
    assert "Authorization" not in judge.headers[0]


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
def test_passing_trouble_is_tried_again(judges: ModuleType, status: int) -> None:
    def say(body: dict, handler: object) -> str | None:
        return "fine" if len(judge.asked) == 3 else judges.reply(handler, status, {"error": {"message": "busy"}})

    with judges.fake_judge(say) as judge:
        assert endpoint(judge.url).ask(ASK) == "fine"
    assert len(judge.asked) == 3


@pytest.mark.parametrize("status", [400, 413, 418])
def test_other_refusals_are_not(judges: ModuleType, status: int) -> None:
    message = {"error": {"message": "no \x1b[31m such\nthing"}}
    said = rf"^the server answers {status}: no \?\[31m such thing$"
    refusing = judges.fake_judge(lambda body, handler: judges.reply(handler, status, message))
    with refusing as judge, pytest.raises(Unanswered, match=said) as e:
        endpoint(judge.url).ask(ASK)
    assert len(judge.asked) == 1 and not e.value.is_hopeless


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_some_leave_no_hope(judges: ModuleType, status: int) -> None:
    def say(body: dict, handler: object) -> None:
        judges.reply(handler, status, {"error": "wrong key sk-secret"}, Location="http://127.0.0.1:1/")

    with judges.fake_judge(say) as judge, pytest.raises(Unanswered) as e:
        endpoint(judge.url, key="sk-secret").ask(ASK)
    assert e.value.is_hopeless and len(judge.asked) == 1 and "sk-secret" not in e.value.reason


@pytest.mark.parametrize(
    "body",
    [
        b"<html>", b"{", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 90_000,
        b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": {"content": " "}}]}', b"\xff",
    ],
)  # fmt: skip
def test_nonsense_is_tried_again_and_then_unanswered(judges: ModuleType, body: bytes) -> None:
    confused = judges.fake_judge(lambda _, handler: judges.reply(handler, 200, body))
    with confused as judge, pytest.raises(Unanswered, match=r"the answer .* \(3 tries\)"):
        endpoint(judge.url, retries=2).ask(ASK)
    assert len(judge.asked) == 3


def test_text_in_parts(judges: ModuleType) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, {"type": "text", "text": "b"}]
    document = {"choices": [{"message": {"content": parts}}]}
    with judges.fake_judge(lambda body, handler: judges.reply(handler, 200, document)) as judge:
        assert endpoint(judge.url).ask(ASK) == "ab"


def test_a_text_that_is_cut_off_in_a_pair_of_surrogates_can_be_kept(judges: ModuleType) -> None:
    body = b'{"choices": [{"message": {"content": "[[7]] \\ud83d\\ude00 \\ud83d"}}]}'
    with judges.fake_judge(lambda _, handler: judges.reply(handler, 200, body)) as judge:
        assert endpoint(judge.url).ask(ASK) == "[[7]] \U0001f600 ?"


def test_nobody_there() -> None:
    with pytest.raises(Unanswered, match=r"http://127.0.0.1:1/v1 cannot be asked: connection refused \(2 tries\)"):
        endpoint("http://127.0.0.1:1/v1", retries=1).ask(ASK)


def test_a_server_that_never_answers(judges: ModuleType) -> None:
    gone = threading.Event()
    with judges.fake_judge(lambda body, handler: gone.wait(20) and None) as judge:
        with pytest.raises(Unanswered, match=r"does not answer within 0\.2 s"):
            endpoint(judge.url, timeout=0.2, retries=0).ask(ASK)
        gone.set()


@pytest.mark.parametrize("value", ["0.3", None])
def test_the_server_says_how_long_to_wait(judges: ModuleType, value: str | None) -> None:
    """A date counts in whole seconds, so one of two seconds hence is between one and two away."""

    def say(body: dict, handler: object) -> str | None:
        if len(judge.asked) > 1:
            return "fine"
        return judges.reply(handler, 429, {}, Retry_After=value or formatdate(time.time() + 2, usegmt=True))

    with judges.fake_judge(say) as judge:
        started = time.monotonic()
        assert endpoint(judge.url, pause=30.0).ask(ASK) == "fine"
        assert (0.3 if value else 0.9) <= time.monotonic() - started < 4


def test_stop_wakes_who_waits() -> None:
    judge = endpoint("http://127.0.0.1:1/v1", pause=30.0)
    threading.Timer(0.2, judge.stop).start()
    started = time.monotonic()
    with pytest.raises(Unanswered):
        judge.ask(ASK)
    assert time.monotonic() - started < 5


def test_parameters_that_a_server_does_not_take_are_left_out(judges: ModuleType) -> None:
    def say(body: dict, handler: object) -> str | None:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return judges.reply(handler, 400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
        return "fine"

    with judges.fake_judge(say) as judge:
        e = endpoint(judge.url)
        assert e.left_out == [] and e.ask(ASK) == "fine" and e.ask(ASK) == "fine"
    assert len(judge.asked) == 4 and e.left_out == ["max_tokens", "temperature"]


def test_the_model_is_what_the_server_says(judges: ModuleType) -> None:
    with judges.fake_judge(lambda body, handler: "x", models=["llama", "other"]) as judge:
        assert endpoint(judge.url, model=None).model == "llama"
    with judges.fake_judge(lambda body, handler: "x") as judge:
        assert endpoint(judge.url, model=None).model == "default"
    assert endpoint("http://127.0.0.1:1/v1", model=None).model == "default"
