"""The table of fields, each with values that are allowed and values that are not, through the whole application."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coterie import load

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Once upon a time"}]
MISTRALS = ("random_seed", "safe_prompt", "safe_mode", "guardrails")  # they make it the other dialect
ASSISTANT = {"role": "assistant", "content": "there was"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON_SCHEMA = {"name": "a", "schema": SCHEMA, "strict": True}
TABLE: list[tuple[str, str, list[Any], list[Any]]] = [  # route, field, allowed, refused
    (CHAT, "model", [None, "demo"], [5, ["demo"]]),
    (CHAT, "messages", [
        [{"role": "developer", "content": "Be brief."}, *HELLO],
        [*HELLO, *HELLO],
        [*HELLO, {"role": "system", "content": "x"}, *HELLO],
        [{"role": "user", "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": " upon"}]}],
        [*HELLO, {**ASSISTANT, "prefix": True}],
        [ASSISTANT, *HELLO],
        [{"role": "user", "content": "Once", "name": "me"}],
    ], [None, [], "a", [5], [*HELLO, ASSISTANT], [{**HELLO[0], "prefix": True}], [{"role": "user", "content": ""}]]),
    (CHAT, "stream", [False, True], [0, "true"]),
    (CHAT, "stop", ["x", ["x", "y"], [], None], [5, "", [""], ["x"] * 17, ["x" * 257]]),
    (CHAT, "n", [1, 2, 16], [0, 17, 129, True]),
    (CHAT, "seed", [0, -(2**63), 2**63 - 1], [2**63, 0.5]),
    (CHAT, "random_seed", [0, 2**63 - 1], [-1]),
    (CHAT, "temperature", [0, 0.5, 2, 1], [-0.1, 2.1]),
    (CHAT, "top_p", [0.1, 1], [0, 1.1]),
    (CHAT, "top_k", [-1, 0, 5], [-2, 0.5]),
    (CHAT, "min_p", [0, 0.5, 1], [-0.1, 1.1]),
    (CHAT, "typical_p", [0.2, 1], [0, 1.1]),
    (CHAT, "repetition_penalty", [0.5, 1.2], [0, -1]),
    (CHAT, "presence_penalty", [-2, 2], [-2.1, 2.1]),
    (CHAT, "frequency_penalty", [-2, 2], [-2.1, 2.1]),
    (CHAT, "logit_bias", [{}, {"5": -100, "6": 100}], [{"5": 101}, {"a": 1}, {"99999999": 1}, [1]]),
    (CHAT, "max_tokens", [1, 5], [-1, 0, 10**7]),
    (CHAT, "max_completion_tokens", [1, 5], [-1, 0, 10**7]),
    (CHAT, "min_tokens", [0, 1], [-1, 3]),
    (CHAT, "response_format", [{"type": "text"}, {"type": "json_object"},
        {"type": "json_schema", "json_schema": JSON_SCHEMA}], ["json", {}, {"type": "yaml"}]),
    (CHAT, "structured_outputs", [{"regex": "a+"}, {"choice": ["a", "b"]}, {"json": SCHEMA}], [{}, {"x": 1}, "a"]),
    (CHAT, "guided_choice", [["a", "b"]], ["a", []]),
    (CHAT, "guided_regex", ["[ab]+"], ["("]),
    (CHAT, "guided_json", [SCHEMA], [[1]]),
    (CHAT, "grammar", ['root ::= "a" | "b"'], ["root ::= ("]),
    (CHAT, "tools", [None], [[], "f", [{}]]),
    (CHAT, "tool_choice", ["none", None], ["required", "maybe", 5]),
    (CHAT, "parallel_tool_calls", [True, False], ["no"]),
    (CHAT, "safe_prompt", [True, False], ["yes"]),
    (CHAT, "safe_mode", [True, False], [1]),
    (CHAT, "strict_roles", [True], ["yes"]),
    (CHAT, "add_generation_prompt", [True, False], ["yes"]),
    (CHAT, "chat_template", [None], ["{{ messages }}"]),
    (CHAT, "chat_template_kwargs", [None, {}], [{"tokenize": True}, []]),
    (CHAT, "return_routing", [False, "final", "stream"], [True, "both"]),
    (CHAT, "experts", [{}, {"top_k": 1}, {"ban": [[0, 0]]}, {"bias": [[0, 0, -3.5]]}], [[], {"top_k": 0}]),
    (CHAT, "return_token_ids", [True], [1]),
    (CHAT, "timings", [True], [1]),
    (CHAT, "truncate", [False, "middle"], [True, "end"]),
    (CHAT, "logprobs", [True, False], [1]),
    (CHAT, "user", ["me"], [5]),
    (CHAT, "metadata", [{"a": 1}], ["a"]),
    (CHAT, "store", [True], ["a"]),
    (CHAT, "prompt_cache_key", ["a"], [5]),
    (CHAT, "cache_salt", ["a"], [5]),
    (CHAT, "guardrails", [[]], []),
    (CHAT, "reasoning_effort", ["low", None], []),
    (TEXT, "prompt", ["Once", ["Once", "Twice"], [1, 5], [[1, 5], [1, 6]]], [None, "", [], [[]], ["a", 1], [True]]),
    (TEXT, "logprobs", [0, 5, 20], [-1, 21, True]),
    (TEXT, "best_of", [1, 3], [0, 17]),
    (TEXT, "echo", [False], ["a"]),
    (TEXT, "suffix", [None, ""], ["the end", 5]),
    (TEXT, "max_tokens", [1], [0, -1]),
]  # fmt: skip


@pytest.fixture(scope="module")
def post(asgi: Callable[..., Any], serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    runner = asyncio.Runner()
    context = serving(load())
    app = runner.run(context.__aenter__())
    yield lambda path, body: runner.run(asgi(app, "POST", path, body))
    runner.run(context.__aexit__(None, None, None))
    runner.close()


@pytest.mark.parametrize(("path", "field", "allowed", "refused"), TABLE, ids=[f"{r[4:8]}-{f}" for r, f, _, _ in TABLE])
def test_a_field(post: Callable[..., Any], path: str, field: str, allowed: list[Any], refused: list[Any]) -> None:
    needed = {"messages": HELLO} if path == CHAT else {"prompt": "Once"}
    for value in allowed:
        answer = post(path, {**needed, "max_tokens": 2, field: value})
        assert answer.status == 200, (value, answer.body)
    for value in refused:
        answer = post(path, {**needed, "max_tokens": 2, field: value})
        assert answer.status == (422 if field in MISTRALS else 400), (value, answer.body)
        assert answer.json["param"].split(".")[0] == field and field.split("_")[0] in answer.json["message"], (
            answer.body
        )
