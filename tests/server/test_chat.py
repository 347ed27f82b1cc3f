"""Chat completions without a network: frames as raw bytes, fields, both dialects, failures in the middle."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from coterie import LanguageModel, load

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Il était une fois"}]
MISTRAL = {"user-agent": "mistral-client-python/3.7.0"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load()


@pytest.fixture(scope="module")
def post(lm: LanguageModel, asgi: Callable[..., Any], serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`post(body, headers)` -> Answer, of one application for the whole module."""
    runner = asyncio.Runner()
    context = serving(lm)
    app = runner.run(context.__aenter__())

    def ask(body: dict[str, Any], headers: dict[str, str] | None = None, path: str = PATH, method: str = "POST") -> Any:
        full = {"messages": HELLO, "max_tokens": 8, "temperature": 0, **body} if path == PATH else body
        return runner.run(asgi(app, method, path, full if method == "POST" else None, headers))

    yield ask
    runner.run(context.__aexit__(None, None, None))
    runner.close()


def chunks(answer: Any) -> list[dict[str, Any]]:
    """The chunks of a stream whose bytes are as they have to be."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    frames = answer.body.decode().split("\n\n")  # UTF-8 as a whole
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(f.startswith("data: {") and "\n" not in f for f in frames[:-2])
    found = [json.loads(f[6:]) for f in frames[:-2]]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in found}) == 1
    assert all(c["object"] == "chat.completion.chunk" for c in found) and found[0]["id"].startswith("chatcmpl-")
    return found


def test_a_stream_is_framed_as_it_has_to_be(post: Callable[..., Any]) -> None:
    found = chunks(post({"stream": True}))
    first, *middle, last = [c["choices"][0] for c in found]
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert all("role" not in c["delta"] and c["delta"]["content"] and c["finish_reason"] is None for c in middle)
    assert last["delta"] == {} and last["finish_reason"] == "length"
    assert not any("usage" in c for c in found)
    whole = post({}).json
    assert "".join(c["delta"]["content"] for c in middle) == whole["choices"][0]["message"]["content"]
    assert whole["object"] == "chat.completion" and whole["choices"][0]["message"]["role"] == "assistant"


def test_each_choice_has_one_beginning_and_one_end(post: Callable[..., Any]) -> None:
    found = [c["choices"][0] for c in chunks(post({"stream": True, "n": 3, "temperature": 1, "seed": 5}))]
    for index in range(3):
        own = [c for c in found if c["index"] == index]
        assert [c["delta"].get("role") for c in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [c["finish_reason"] is not None for c in own] == [False] * (len(own) - 1) + [True]


def test_usage_comes_last_and_is_null_before(post: Callable[..., Any]) -> None:
    *before, last = chunks(post({"stream": True, "stream_options": {"include_usage": True}}))
    assert all(c["usage"] is None for c in before) and last["choices"] == []
    assert last["usage"] == post({}).json["usage"] | {"prompt_tokens_details": last["usage"]["prompt_tokens_details"]}
    counted = chunks(post({"stream": True, "stream_options": {"continuous_usage_stats": True}}))
    totals = [c["usage"]["completion_tokens"] for c in counted]
    assert totals == sorted(totals) and totals[-1] == 8


def test_the_stop_text_never_leaks(post: Callable[..., Any], lm: LanguageModel) -> None:
    text = lm.generate(HELLO[0]["content"], max_tokens=40, temperature=0.9, seed=4).text
    stop = text[12:16]
    asked = {"max_tokens": 40, "temperature": 0.9, "seed": 4, "stop": [stop, "never there"]}
    found = chunks(post({**asked, "stream": True, "logprobs": True, "return_routing": "stream"}))
    shown = "".join(c["choices"][0]["delta"].get("content", "") for c in found)
    assert shown == text[: text.index(stop)] and found[-1]["choices"][0]["finish_reason"] == "stop"
    routed = [t for c in found for t in c["choices"][0].get("routing", {}).get("tokens", [])]
    logged = [e["token"] for c in found for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert "".join(routed) == "".join(logged) == shown
    kept = post({**asked, "include_stop_str_in_output": True}).json["choices"][0]["message"]["content"]
    assert kept.endswith(stop)


def test_logprobs_add_up_to_the_content(post: Callable[..., Any]) -> None:
    choice = post({"logprobs": True, "top_logprobs": 3, "max_tokens": 20}).json["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(e["token"] for e in entries) == choice["message"]["content"] and len(entries) == 20
    assert b"".join(bytes(e["bytes"]) for e in entries).decode() == choice["message"]["content"]
    names = ("token", "logprob", "bytes", "token_id")
    for e in entries:  # greedy: the chosen one is the best
        assert len(e["top_logprobs"]) == 3 and e["top_logprobs"][0] == {name: e[name] for name in names}


def test_logprobs_are_those_before_temperature_and_penalties(post: Callable[..., Any]) -> None:
    asked = {"logprobs": True, "max_tokens": 1, "seed": 1}
    cold, hot = (post({**asked, "temperature": t}).json["choices"][0]["logprobs"]["content"][0] for t in (0, 1e-4))
    assert cold["logprob"] == pytest.approx(hot["logprob"], abs=1e-5)


def test_routing_is_in_the_answer_and_is_that_of_the_model(post: Callable[..., Any], lm: LanguageModel) -> None:
    answer = post({"return_routing": "final", "return_token_ids": True}).json
    choice = answer["choices"][0]
    ids = [*answer["prompt_token_ids"], *choice["token_ids"]]
    trace = lm.route(ids)
    assert choice["routing"]["experts"] == trace.experts[len(answer["prompt_token_ids"]) :].tolist()
    file = io.BytesIO(base64.b64decode(choice["routed_experts"]))
    assert np.load(file, allow_pickle=False).tolist() == choice["routing"]["experts"]
    assert "".join(choice["routing"]["tokens"]) == choice["message"]["content"]
    assert choice["routing"]["token_ids"] == choice["token_ids"]
    np.testing.assert_allclose(np.sum(choice["routing"]["weights"], -1), 1, atol=1e-4)


def test_routing_of_a_stream_is_that_of_the_whole(post: Callable[..., Any]) -> None:
    whole = post({"return_routing": "final"}).json["choices"][0]["routing"]
    streamed = [c["choices"][0]["routing"] for c in chunks(post({"stream": True, "return_routing": "stream"})) if "routing" in c["choices"][0]]  # fmt: skip  # noqa: E501
    assert {key: [x for part in streamed for x in part[key]] for key in whole} == whole
    *before, last = chunks(post({"stream": True, "return_routing": "final"}))
    assert last["choices"][0]["routing"] == whole and "routed_experts" in last["choices"][0]
    assert not any("routing" in c["choices"][0] for c in before)
    assert not any("routing" in c["choices"][0] for c in chunks(post({"stream": True, "return_routing": False})))


def test_recent_routing_can_be_had_again(post: Callable[..., Any]) -> None:
    answer = post({"return_routing": "final", "n": 2, "temperature": 1}).json
    kept = post({}, path=f"/v1/routing/{answer['id']}", method="GET").json
    assert [c["experts"] for c in kept["choices"]] == [c["routing"]["experts"] for c in answer["choices"]]
    assert post({}, path="/v1/routing/chatcmpl-0", method="GET").status == 404
    plain = post({}).json
    assert post({}, path=f"/v1/routing/{plain['id']}", method="GET").status == 404


def test_experts_are_edited_and_echoed(post: Callable[..., Any]) -> None:
    choice = post({"return_routing": "final", "experts": {"ban": [[0, 2], [0, 3]], "top_k": 1}})
    assert choice.status == 200, choice.body
    assert choice.json["experts"] == {"ban": [[0, 2], [0, 3]], "bias": [], "top_k": 1}
    experts = np.array(choice.json["choices"][0]["routing"]["experts"])
    assert not np.isin(experts[:, 0], [2, 3]).any()
    bad = post({"experts": {"ban": [[0, 99]]}})
    assert (bad.status, bad.json["param"]) == (400, "experts.ban.0.1")


def test_the_same_seed_is_the_same_text(post: Callable[..., Any]) -> None:
    asked = {"temperature": 1, "max_tokens": 12, "n": 2}
    one, two, three, four = (post({**asked, **s}).json for s in ({"seed": 7}, {"random_seed": 7}, {"seed": 8}, {}))
    texts = [[c["message"]["content"] for c in a["choices"]] for a in (one, two, three, four)]
    assert texts[0] == texts[1] != texts[2] and texts[0] != texts[3] and texts[0][0] != texts[0][1]
    assert one["system_fingerprint"] == three["system_fingerprint"] and one["system_fingerprint"].startswith("fp_")


def test_mistrals_dialect(post: Callable[..., Any]) -> None:
    for extra, headers in (({}, MISTRAL), ({"random_seed": 1}, None)):
        *before, last = chunks(post({"stream": True, **extra}, headers))
        assert last["usage"]["completion_tokens"] == 8 and last["choices"][0]["finish_reason"] == "length"
        assert not any("usage" in c for c in before)
    assert post({"temperature": 3}, MISTRAL).status == 422 and post({"temperature": 3}).status == 400
    assert post({"max_tokens": 0}).json["param"] == "max_tokens"
    empty = post({"max_tokens": 0}, MISTRAL).json
    assert empty["choices"][0]["message"]["content"] == "" and empty["usage"]["completion_tokens"] == 0
    old = post({"safe_mode": True})
    assert old.status == 200 and old.headers["deprecation"].startswith("@") and old.json["usage"]["prompt_tokens"] > 50


def test_the_end_of_the_context_is_a_reason_of_its_own_in_mistrals_dialect(post: Callable[..., Any]) -> None:
    long = [{"role": "user", "content": "word " * 2030}]
    for headers, reason in ((MISTRAL, "model_length"), (None, "length")):
        answer = post({"messages": long, "max_tokens": None, "ignore_eos": True}, headers).json
        assert answer["choices"][0]["finish_reason"] == reason and answer["usage"]["total_tokens"] == 2048


def test_beyond_the_context_is_refused_with_both_numbers(post: Callable[..., Any]) -> None:
    too_long = post({"messages": [{"role": "user", "content": "word " * 4000}]})
    assert (too_long.status, too_long.json["code"], too_long.json["param"]) == (
        400,
        "context_length_exceeded",
        "messages",
    )
    error = too_long.json["error"]
    assert error["n_ctx"] == 2048 and error["n_prompt_tokens"] > 4000
    too_many = post({"max_completion_tokens": 2048, "max_tokens": 1})
    assert (too_many.json["code"], too_many.json["param"]) == ("context_length_exceeded", "max_completion_tokens")
    cut = post({"messages": [{"role": "user", "content": "word " * 4000}], "truncate": "middle"}).json
    assert cut["truncated"]["dropped_tokens"] == error["n_prompt_tokens"] - 2040
    assert cut["usage"]["prompt_tokens"] == 2040


def test_fields_that_nothing_reads_are_named(post: Callable[..., Any]) -> None:
    answer = post({"colour": 1, "guardrails": [], "user": "me", "messages": [{**HELLO[0], "mood": "good"}]})
    assert answer.headers["x-ignored-fields"] == "colour, guardrails, messages.mood"
    assert "x-ignored-fields" not in post({"user": "me"}).headers


def test_strict_servers_refuse_them(lm: LanguageModel, asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> list[Any]:
        async with serving(lm, strict_api=True) as app:
            plain = {"messages": HELLO, "max_tokens": 1}
            bodies = (plain, {**plain, "colour": 1}, {**plain, "messages": [{**HELLO[0], "mood": 1}]})
            return [await asgi(app, "POST", PATH, body) for body in bodies]

    plain, field, key = asyncio.run(ask())
    assert plain.status == 200
    assert [(a.status, a.json["param"]) for a in (field, key)] == [(400, "colour"), (400, "messages.mood")]


def test_timings_ids_intervals(post: Callable[..., Any]) -> None:
    answer = post({"timings": True, "return_token_ids": True}).json
    assert answer["timings"]["predicted_n"] == 8 == len(answer["choices"][0]["token_ids"])
    assert answer["timings"]["prompt_n"] + answer["timings"]["cache_n"] == len(answer["prompt_token_ids"])
    found = chunks(post({"stream": True, "stream_interval": 4, "timings": True, "return_token_ids": True}))
    ids = [c["choices"][0]["token_ids"] for c in found if "token_ids" in c["choices"][0]]
    assert [i for part in ids for i in part] == answer["choices"][0]["token_ids"]
    assert all(len(part) >= 4 for part in ids[1:-1]) and found[-1]["timings"]["predicted_n"] == 8


def test_progress(post: Callable[..., Any]) -> None:
    long = [{"role": "user", "content": "Once upon a time " * 400}]
    found = chunks(post({"messages": long, "stream": True, "return_progress": True, "max_tokens": 1}))
    seen = [c["prompt_progress"] for c in found if "prompt_progress" in c]
    assert seen and all(p["processed"] <= p["total"] and p["cache"] >= 0 for p in seen)
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
