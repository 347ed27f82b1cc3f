"""Mistral's official client against a real server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mistralai")
from mistralai.client import Mistral, errors  # since 2.0 its parts are here

HELLO = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Mistral]:
    with Mistral(api_key="none", server_url=server.url) as made:
        yield made


@pytest.fixture
def asked() -> dict[str, Any]:
    return {"model": "demo", "messages": HELLO, "max_tokens": 8, "temperature": 0}


def test_models(client: Mistral) -> None:
    (model,) = client.models.list().data or []
    assert (model.id, model.type, model.max_context_length) == ("demo", "base", 2048)
    assert model.capabilities.completion_chat and not model.capabilities.completion_fim
    assert client.models.retrieve(model_id="demo").id == "demo"


def test_an_answer(client: Mistral, asked: dict[str, Any]) -> None:
    answer = client.chat.complete(**asked, random_seed=3, n=2, logprobs=True, top_logprobs=2, stop=["never there"])
    assert len(answer.choices) == 2 and answer.usage.completion_tokens == 16
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.message is not None
    assert "".join(e.token for e in choice.logprobs.content) == choice.message.content


def test_a_stream_is_the_same_text_with_the_usage_on_its_end(client: Mistral, asked: dict[str, Any]) -> None:
    whole = client.chat.complete(**asked).choices[0].message
    with client.chat.stream(**asked) as stream:
        chunks = [event.data for event in stream]
    assert whole is not None
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.content
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 8
    assert all(len(c.choices) == 1 for c in chunks)


def test_streamed_calls_are_whole(start_server: Callable[..., Any], tmp_path: Path, asked: dict[str, Any]) -> None:
    """The client refuses a part of a call, which has no name."""
    (config := tmp_path / "serve.toml").write_text("tool_emulation = true\n")
    parameters = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "pick", "parameters": parameters}}]
    more = {"tools": tools, "tool_choice": "any", "parallel_tool_calls": False, "max_tokens": 200}
    with Mistral(api_key="none", server_url=start_server("--config", str(config)).url) as client:
        whole = client.chat.complete(**{**asked, **more}).choices[0]
        with client.chat.stream(**{**asked, **more}) as stream:
            choices = [event.data.choices[0] for event in stream]
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert whole.message is not None and choices[-1].finish_reason == whole.finish_reason == "tool_calls"
    expected = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == expected != []


def test_the_guardrail_is_in_the_prompt(client: Mistral, asked: dict[str, Any]) -> None:
    plain, safe = (client.chat.complete(**asked, safe_prompt=flag).usage.prompt_tokens for flag in (False, True))
    assert safe is not None and plain is not None and safe > plain + 40


def test_a_prefix_is_continued(client: Mistral, asked: dict[str, Any]) -> None:
    prefix = {"role": "assistant", "content": "there was a", "prefix": True}
    answer = client.chat.complete(**{**asked, "messages": [*HELLO, prefix]})
    assert answer.choices[0].message is not None and answer.choices[0].message.content


def test_a_schema(client: Mistral, asked: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema_definition": schema, "strict": True}}
    answer = client.chat.complete(**{**asked, "max_tokens": 40}, response_format=form)
    assert answer.choices[0].message is not None and '"a"' in str(answer.choices[0].message.content)


def test_embeddings(client: Mistral) -> None:
    made = client.embeddings.create(model="demo", inputs=["Once", "Twice"])
    assert len(made.data) == 2 and len(made.data[0].embedding or []) == 256


def test_failures(client: Mistral, asked: dict[str, Any]) -> None:
    with pytest.raises(errors.HTTPValidationError) as caught:
        client.chat.complete(**{**asked, "temperature": 9})
    assert caught.value.status_code == 422 and "temperature is 9.0" in str(caught.value.data.detail)
    with pytest.raises(errors.SDKError, match="model_not_found"):
        client.chat.complete(**{**asked, "model": "mistral-large"})
    with pytest.raises(errors.SDKError, match="501"):
        client.fim.complete(model="demo", prompt="def f(", suffix="return a")


def test_a_failure_in_the_middle_is_a_finish_reason(start_server: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('total_timeout = "0.3s"\n')
    server = start_server("--config", str(tmp_path / "c.toml"))
    with (
        Mistral(api_key="none", server_url=server.url) as client,
        client.chat.stream(model="demo", messages=HELLO, max_tokens=1900, n=16) as stream,
    ):
        reasons = [c.finish_reason for event in stream for c in event.data.choices if c.finish_reason]
    assert "error" in reasons
    server.stop()
