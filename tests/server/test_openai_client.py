"""OpenAI's official client against a real server: everything that it does with a local one."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie import LanguageModel, load
from coterie.server.tokens import vocabulary

openai = pytest.importorskip("openai")

HELLO = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as made:
        yield made


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load()


@pytest.fixture
def ask(client: Any) -> Callable[..., Any]:
    def create(**fields: Any) -> Any:
        return client.chat.completions.create(
            **{"model": "demo", "messages": HELLO, "max_tokens": 8, "temperature": 0, **fields}
        )

    return create


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "coterie") and model.created > 0
    assert client.models.retrieve("demo").model_extra["coterie"]["n_experts"] > 1
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_an_answer(ask: Callable[..., Any]) -> None:
    answer = ask(logprobs=True, top_logprobs=2, n=2, stop=["never there"], seed=3, logit_bias={"5": -100}, user="me")
    assert [c.index for c in answer.choices] == [0, 1] and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16 and answer.usage.prompt_tokens_details.cached_tokens >= 0
    choice = answer.choices[0]
    assert "".join(e.token for e in choice.logprobs.content) == choice.message.content


def test_a_stream_is_the_same_text(ask: Callable[..., Any]) -> None:
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 8
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]


def test_the_helper_that_accumulates(client: Any) -> None:
    with client.chat.completions.stream(model="demo", messages=HELLO, max_tokens=5, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot
    assert kinds == {"chunk", "content.delta", "content.done"}
    assert final.choices[0].message.role == "assistant" and final.choices[0].finish_reason == "length"


def test_routing_is_kept_in_the_extra_fields(ask: Callable[..., Any]) -> None:
    choice = ask(extra_body={"return_routing": "final"}).choices[0]
    assert len(choice.model_extra["routing"]["experts"]) == 8
    chunks = ask(stream=True, extra_body={"return_routing": "stream"})
    routed = [c.choices[0].model_extra["routing"] for c in chunks if "routing" in (c.choices[0].model_extra or {})]
    assert sum(len(r["experts"]) for r in routed) == 8


def test_a_schema(ask: Callable[..., Any], lm: LanguageModel) -> None:
    """A small model likes to write blanks, which JSON allows, without end."""
    words = vocabulary(lm.tokenizer)
    blanks = {str(i): -100 for i in range(lm.tokenizer.vocab_size) if words.raw(i).isspace()}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    text = ask(response_format=form, max_tokens=60, logit_bias=blanks).choices[0].message.content
    assert 0 <= json.loads(text)["a"] <= 99
    chunks = ask(response_format=form, max_tokens=60, logit_bias=blanks, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


def test_completions(client: Any) -> None:
    answer = client.completions.create(
        model="demo", prompt=["Once", "Twice"], max_tokens=4, n=2, best_of=3, logprobs=1, seed=2
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3] and answer.usage.completion_tokens == 24
    assert all("".join(c.logprobs.tokens) == c.text for c in answer.choices)
    chunks = list(client.completions.create(model="demo", prompt="Once", max_tokens=4, temperature=0, stream=True))
    whole = client.completions.create(model="demo", prompt="Once", max_tokens=4, temperature=0)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


def test_embeddings_are_base64_by_default(client: Any) -> None:
    made = client.embeddings.create(model="demo", input=["Once upon", "a time"])
    floats = client.embeddings.create(model="demo", input=["Once upon", "a time"], encoding_format="float")
    raw = client.embeddings.with_raw_response.create(model="demo", input="Once upon", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(raw.http_response.json()["data"][0]["embedding"]), "<f4")
    assert [e.index for e in made.data] == [0, 1] and raw.headers["x-experimental"] == "embeddings"
    for a, b in zip(made.data, floats.data, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding)
    np.testing.assert_allclose(vector, floats.data[0].embedding, atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_failures_have_type_code_and_param(ask: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(temperature=3)
    error = caught.value
    assert (error.code, error.param, error.type) == ("invalid_value", "temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as caught:
        ask(model="gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(max_tokens=100_000, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_a_failure_in_the_middle_raises_with_our_sentence(start_server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('total_timeout = "0.3s"\n')
    server = start_server("--config", str(tmp_path / "c.toml"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "demo", "messages": HELLO, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
        seen = []
        with pytest.raises(openai.APIError, match="limit"):
            for chunk in client.chat.completions.create(**asked, n=16, stream=True):
                seen.append(chunk)
        assert len(seen) > 1
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**asked, n=16)
        assert caught.value.status_code == 504 and caught.value.type == "timeout_error"
    server.stop()


def test_a_full_queue_is_tried_three_times(start_server: Callable[..., Any], tmp_path: Path) -> None:
    """Others take each place as it becomes free, however fast the machine is."""
    (tmp_path / "c.toml").write_text("max_queue_requests = 1\nmax_live = 1\ncache_tokens = 40000\n")
    server = start_server("--config", str(tmp_path / "c.toml"))
    asked = {"model": "demo", "messages": HELLO, "max_tokens": 2000, "n": 16, "extra_body": {"ignore_eos": True}}
    has_ended = threading.Event()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for _ in range(3):  # so that it knows how fast it is
            client.chat.completions.create(model="demo", messages=HELLO, max_tokens=1)
        others = [threading.Thread(target=_asking_on, args=(client, asked, has_ended)) for _ in range(4)]
        for other in others:
            other.start()
        time.sleep(0.5)
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=2).chat.completions.create(**asked, extra_headers={"x-request-id": "third"})
        assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
        has_ended.set()
        server.process.kill()
        for other in others:
            other.join()
    assert sum('"status": 429' in line and '"third"' in line for line in server.log) == 3


def _asking_on(client: Any, asked: dict[str, Any], has_ended: threading.Event) -> None:
    while not has_ended.wait(0.005):
        with contextlib.suppress(openai.APIError):
            client.with_options(max_retries=0).chat.completions.create(**asked)


async def _asynchronously(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=8, temperature=0, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])


def test_the_asynchronous_client(server: Any, ask: Callable[..., Any]) -> None:
    import asyncio

    assert asyncio.run(_asynchronously(server.url)) == ask().choices[0].message.content
