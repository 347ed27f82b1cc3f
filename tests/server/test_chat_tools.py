"""Calls of tools through the chat route: refused without tokens for them, emulated if asked for, and real ones."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie import LanguageModel, load
from coterie.server.tokens import vocabulary
from coterie.tokenizer import load_tokenizer
from coterie.tokenizer.chat import chat_form

PARAMETERS = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2]}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "pick", "description": "Pick one", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "drop", "parameters": PARAMETERS}},
]
NAMED = {"type": "function", "function": {"name": "pick"}}
HELLO = [{"role": "user", "content": "Pick one"}]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load()


@pytest.fixture
def post(asgi: Callable[..., Any], serving: Callable[..., Any]) -> Callable[..., Any]:
    def ask(lm: LanguageModel, body: dict[str, Any], **settings: Any) -> Any:
        async def answer() -> Any:
            async with serving(lm, **settings) as app:
                return await asgi(app, "POST", "/v1/chat/completions", full)

        words = vocabulary(lm.tokenizer)
        blanks = [i for i in range(lm.tokenizer.vocab_size) if words.raw(i).isspace()]
        full = {
            "messages": HELLO,
            "max_tokens": 120,
            "temperature": 0,
            "logit_bias": dict.fromkeys(blanks, -100),
            **body,
        }
        return asyncio.run(answer())

    return ask


@pytest.fixture
def tiny(mistral_files: dict[str, Path], make_model: Callable[..., Any]) -> LanguageModel:
    """A random model with v3's tokenizer, which has tokens for tools."""
    tokenizer = load_tokenizer(mistral_files["v3"])
    size = {"hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 1024}
    model = make_model(vocab_size=tokenizer.vocab_size, **size)
    return LanguageModel(model, tokenizer, chat_form("mistral-v3"), name="tiny")


def check_call(call: dict[str, Any]) -> None:
    assert call["type"] == "function" and call["id"] and call["function"]["name"] == "pick"
    assert json.loads(call["function"]["arguments"])["x"] in (1, 2)


def test_a_model_without_the_tokens_refuses(post: Callable[..., Any], lm: LanguageModel) -> None:
    answer = post(lm, {"tools": TOOLS})
    assert (answer.status, answer.json["code"], answer.json["param"]) == (400, "tools_unsupported", "tools")


def test_emulated_and_labelled(post: Callable[..., Any], lm: LanguageModel) -> None:
    answer = post(lm, {"tools": TOOLS, "tool_choice": NAMED}, tool_emulation=True)
    assert answer.status == 200, answer.body
    assert answer.json["x_tool_emulation"] is True
    choice = answer.json["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    check_call(call)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_call_that_is_required(post: Callable[..., Any], tiny: LanguageModel, is_streamed: bool) -> None:
    answer = post(tiny, {"tools": TOOLS, "tool_choice": NAMED, "stream": is_streamed})
    assert answer.status == 200, answer.body
    if not is_streamed:
        choice = answer.json["choices"][0]
        (call,), reason = choice["message"]["tool_calls"], choice["finish_reason"]
        assert "x_tool_emulation" not in answer.json and len(call["id"]) == 9
    else:
        chunks = [json.loads(f[6:])["choices"][0] for f in answer.body.decode().split("\n\n")[:-2]]
        parts = [p for c in chunks for p in c["delta"].get("tool_calls", [])]
        assert {p["index"] for p in parts} == {0} and [p["id"] for p in parts if "id" in p] == [parts[0]["id"]]
        text = "".join(p["function"]["arguments"] for p in parts)
        call = {**parts[0], "function": {"name": parts[0]["function"]["name"], "arguments": text}}
        reason = chunks[-1]["finish_reason"]
        assert chunks[-1]["delta"] == {}
    check_call(call)
    assert reason == "tool_calls"


def test_a_form_beside_a_required_call_is_refused(post: Callable[..., Any], tiny: LanguageModel) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    answer = post(tiny, {"tools": TOOLS, "tool_choice": NAMED, "response_format": form})
    assert (answer.status, answer.json["param"]) == (400, "tools")


def test_a_conversation_with_results(post: Callable[..., Any], tiny: LanguageModel) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "pick", "arguments": '{"x": 1}'}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "pick", "content": "done"},
    ]
    answer = post(tiny, {"messages": turns, "tools": TOOLS, "max_tokens": 4})
    assert answer.status == 200, answer.body
    lost = post(tiny, {"messages": [*HELLO, turns[2]], "tools": TOOLS})
    assert (lost.status, lost.json["param"]) == (400, "messages")
