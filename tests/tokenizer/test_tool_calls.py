"""Tools and their calls as they come in, and in Mistral's chat forms against mistral-common."""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import RequestError
from coterie.tokenizer import CHAT_FORMS, Tokenizer
from coterie.tokenizer.tool_calls import json_depth, loaded, read_calls, read_tools, short_id

_WORDS = [
    "Zürich",
    "42",
    '"',
    "\\",
    "[TOOL_CALLS]",
    "[/AVAILABLE_TOOLS]",
    "日本",
    "🙂",
    "\n",
    " ",
    "</s>",
    "{",
    "a b",
    "é",
]


def tool(name: str = "weather", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Tells", "parameters": parameters}}


def call(call_id: str = "abcdefgh1", name: str = "weather", arguments: Any = '{"place": "Bern"}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asked(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": list(calls)},
    ]


def result(call_id: str = "abcdefgh1", content: Any = "7") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _text(rng: random.Random) -> str:
    return rng.choice(["", " "]).join(rng.choice(_WORDS) for _ in range(rng.randint(1, 5)))


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {_text(rng): _value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    return [None, True, rng.randint(-9, 10**9), rng.random() * 10, _text(rng)][kind]


def _id(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(9))


def _round(rng: random.Random, n_calls: int) -> list[dict[str, Any]]:
    """The assistant calls, the tools answer, perhaps once more, then the assistant speaks."""
    turns: list[dict[str, Any]] = []
    for _ in range(rng.choice([1, 1, 2])):
        ids = [_id(rng) for _ in range(n_calls)]
        arguments = [json.dumps({"x": _value(rng)}) if rng.random() < 0.9 else _text(rng) for _ in ids]
        calls = [call(i, rng.choice("fg"), a) for i, a in zip(ids, arguments, strict=True)]
        turns.append({"role": "assistant", "content": None, "tool_calls": calls})
        for i, made in zip(ids, calls, strict=True):
            content = json.dumps(_value(rng)) if rng.random() < 0.5 else _text(rng)
            turns.append({**result(i, content), "name": made["function"]["name"]})
    return turns


def _conversation(rng: random.Random, most_calls: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    messages = [{"role": "system", "content": _text(rng)}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(0, 3)):
        messages += [{"role": "user", "content": _text(rng)} for _ in range(rng.choice([1, 1, 2]))]
        if rng.random() < 0.6:
            messages += _round(rng, rng.randint(1, most_calls))
        messages += [{"role": "assistant", "content": _text(rng) + "."}]
    messages += [{"role": "user", "content": _text(rng)}]
    if rng.random() < 0.5:
        messages += _round(rng, rng.randint(1, most_calls))
    schema = {"type": "object", "properties": {_text(rng): {"type": "string"}}}
    tools = [tool(name, **schema) for name in ("f", "g")[: rng.randint(0, 2)]]
    return messages, tools


@pytest.mark.parametrize(
    ("form", "file", "most_calls", "n"),
    [("mistral-v2", "v2", 1, 150), ("mistral-v3", "v3", 3, 300), ("mistral-v3-tekken", "tekken", 3, 150)],
)
def test_no_difference_to_mistral_common_with_tools(
    form: str, file: str, most_calls: int, n: int, mistral_files: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    authority = MistralTokenizer.from_file(str(mistral_files[file]))
    tokenizer: Tokenizer = request.getfixturevalue(file)
    rng = random.Random(f"tools {form}")
    for _ in range(n):
        messages, tools = _conversation(rng, most_calls)
        wanted: Any = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools or None})
        ids = CHAT_FORMS[form].encode(messages, tokenizer, tools)
        assert ids == authority.encode_chat_completion(wanted).tokens, (messages, tools)


def test_ids_of_other_servers_become_nine_letters(v3: Tokenizer) -> None:
    form = CHAT_FORMS["mistral-v3"]
    ids = form.encode([*asked(call("call_0123456789")), result("call_0123456789")], v3)
    assert v3.decode(ids).count(short_id("call_0123456789")) == 2
    assert short_id("abcdefgh1") == "abcdefgh1"


def test_forms_without_tokens_for_tools_say_so(v1: Tokenizer) -> None:
    for form in ("mistral-v1", "chatml", "llama-2"):
        for messages, tools in (([{"role": "user", "content": "x"}], [tool()]), ([*asked(call()), result()], None)):
            with pytest.raises(RequestError, match="has no tokens for tools"):
                CHAT_FORMS[form].encode(messages, v1, tools)
    assert CHAT_FORMS["mistral-v1"].call_mark(v1) is None


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([*asked(call()), {"role": "user", "content": "x"}], "before the tool call 'abcdefgh1' has its result"),
        ([*asked(call()), result("other")], "tool_call_id 'other', which no tool call"),
        ([*asked(call(), call())], "is the last turn|two tool calls with the id"),
        ([*asked(call()), result(), result()], "which no tool call"),
        ([{"role": "user", "content": "x"}, result()], "which no tool call"),
        ([*asked(call()), {"role": "tool", "content": "x"}], "tool_call_id None; expected"),
        ([*asked(call()), result(content=None)], "content of type NoneType"),
        ([{"role": "user", "content": "x", "tool_calls": [call()]}], "only an assistant turn can have"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "has a name; only"),
        (asked(), "tool_calls \\[\\]; expected a list of 1 to 128"),
        (asked({"id": "a"}), "expected an object with an id and a function"),
        (asked(call(name="no spaces")), "expected 1 to 64 of"),
        (asked(call(call_id="")), "has the id ''"),
        (asked(call(arguments=7)), "arguments of type int"),
        (asked(call(arguments={"x": {1, 2}})), "no JSON"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "'image_url'; only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content part without a text"),
        ([{"role": "assistant", "content": None}], "content of type NoneType"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call()], "prefix": True}], "a prefix"),
    ],
)
def test_calls_and_results_that_do_not_match(messages: list[Any], sentence: str, v3: Tokenizer) -> None:
    with pytest.raises(RequestError, match=sentence) as e:
        CHAT_FORMS["mistral-v3"].encode(messages, v3)
    assert str(e.value).startswith("messages[") and "\n" not in str(e.value)


def test_text_and_calls_in_one_answer_cannot_be_written(v3: Tokenizer) -> None:
    messages = [*asked(call()), result()]
    messages[1]["content"] = "I shall look."
    with pytest.raises(RequestError, match="text and tool_calls"):
        CHAT_FORMS["mistral-v3"].encode(messages, v3)


def test_text_parts_are_joined_as_mistral_common_does(v1: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}]
    form = CHAT_FORMS["mistral-v1"]
    assert form.encode([{"role": "user", "content": parts}], v1) == form.encode(
        [{"role": "user", "content": "a\n\nb"}], v1
    )


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ([], "expected a list of 1 to 128"),
        ("x", "expected a list"),
        ([1], "tools\\[0\\] is 1"),
        ([{"type": "web_search"}], "type 'web_search'"),
        ([{"type": "function"}], "function None"),
        ([tool("")], "name ''"),
        ([tool("a" * 65)], "expected 1 to 64"),
        ([tool("a"), tool("a")], "tools\\[1\\] has the name 'a', and so has tools\\[0\\]"),
        ([{"function": {"name": "a", "description": 1}}], "description 1"),
        ([{"function": {"name": "a", "parameters": []}}], "parameters \\[\\]"),
        ([tool(a="x" * 300_000)], "more than 262,144"),
    ],
)
def test_what_are_no_tools(tools: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        read_tools(tools)


def test_arguments_may_be_an_object_or_missing() -> None:
    first, second = read_calls([call(arguments={"a": "é"}), call("b", arguments=None)], "messages[0]")
    assert (first.arguments, second.arguments) == ('{"a": "é"}', "{}")


def test_depth_and_loading_of_json() -> None:
    assert json_depth('[{"a]": ["[[[\\"[", {}]}]') == 4
    assert loaded("") == {} and loaded("7") == 7 and loaded("nope") == "nope"
    assert loaded("[" * 100_000) == "[" * 100_000
    assert loaded("1" * 5000) == "1" * 5000  # more digits than Python reads
