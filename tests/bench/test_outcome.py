"""One request: what counts as a token, when it came, and every way to fail."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from coterie.bench.outcome import Outcome, ask
from coterie.bench.prompts import Prompt

PROMPT = Prompt({"prompt": "x", "max_tokens": 3}, 1)


def asked(api: Callable[..., Any], answer: Any) -> Outcome:
    async def run() -> Outcome:
        async with api({"/v1/completions": answer}) as fake:
            outcome = await ask(fake.client, "/v1/completions", PROMPT, {"stream": True})
            assert fake.requests[0][2] == {"stream": True, "prompt": "x", "max_tokens": 3}
            return outcome

    return asyncio.run(run())


def data(*values: Any) -> str:
    return "".join(f"data: {v if isinstance(v, str) else json.dumps(v)}\n\n" for v in values)


def test_times_and_tokens_of_a_completion(api: Callable[..., Any], answers: Any) -> None:
    o = asked(api, answers.tokens(["a", "b", "c"], wait=0.05))
    assert (o.error, o.text, o.n_prompt, o.n_output, len(o.times)) == (None, "abc", 7, 3, 3)
    assert 0.05 <= o.ttft <= o.e2el >= 0.15 and o.itls == [o.times[1] - o.times[0], o.times[2] - o.times[1]]
    assert o.tpot == pytest.approx((o.e2el - o.ttft) / 2)


def test_a_chat_whose_role_comes_first_and_whose_last_delta_is_empty(api: Callable[..., Any], answers: Any) -> None:
    role, hello, end = {"role": "assistant", "content": ""}, {"content": "hello"}, {}
    deltas = [(role, None), (hello, None), (end, "stop")]
    chunks = [{"choices": [{"delta": d, "finish_reason": f}]} for d, f in deltas]
    o = asked(api, answers.streamed((0, data(chunks[0])), (0.1, data(chunks[1])), (0, data(chunks[2], "[DONE]"))))
    assert o.error is None and o.text == "hello" and o.n_output == 1 and o.ttft >= 0.1 and o.tpot is None


def test_numbers_of_tokens_are_what_usage_says(api: Callable[..., Any], answers: Any) -> None:
    """Two tokens in one piece, a third without text (half a character)."""
    chunk = {
        "choices": [{"text": "ab", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }
    o = asked(api, answers.streamed((0, data(chunk, "[DONE]"))))
    assert (o.n_prompt, o.n_output, len(o.times)) == (9, 3, 1)


def test_without_usage_pieces_are_counted(api: Callable[..., Any], answers: Any) -> None:
    chunks = [{"choices": [{"text": t, "finish_reason": None}]} for t in "ab"]
    o = asked(api, answers.streamed((0, data(*chunks, "[DONE]"))))
    assert (o.n_prompt, o.n_output) == (1, 2)


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (data({"choices": [{"text": "a"}]}, {"error": {"message": "boom"}}, "[DONE]"), "failed in the middle: boom"),
        (data({"choices": [{"text": "a", "finish_reason": None}]}), "ended without a last event"),
        (data("{oops"), "not JSON"),
        (data("[1]"), "not an object"),
        (data({"choices": []}, "[DONE]"), "no token"),
        ("", "ended without a last event"),
    ],
)
def test_failures(api: Callable[..., Any], answers: Any, frames: str, says: str) -> None:
    o = asked(api, answers.streamed((0, frames)) if frames else answers.reply(b""))
    assert o.error is not None and says in o.error


def test_odd_shapes_are_passed_over(api: Callable[..., Any], answers: Any) -> None:
    odd = [{"choices": "x"}, {"choices": [3]}, {"choices": [{"delta": 4, "text": 5}], "usage": [1]}, {"object": "ping"}]
    usage = {"prompt_tokens": True, "completion_tokens": -1}
    last = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": usage}
    o = asked(api, answers.streamed((0, data(*odd, last))))
    assert o.error is None and (o.n_prompt, o.n_output) == (1, 1)
