"""Bodies: the first wrong field, its value and what was expected; what nobody reads; strictness."""

from typing import Any

import pytest

from coterie.server.failures import ApiError
from coterie.server.schema import ignored_header, read
from coterie.server.schema_chat import ChatBody
from coterie.server.schema_messages import unknown_keys
from coterie.server.schema_text import CompletionBody
from coterie.server.settings import Settings

STOPS = "text, or a list of at most 16 texts, each of 1 to 256 characters"
BIAS = "an entry from a token id to a number between -100 and 100"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def refusal(body: Any, values: dict[str, Any], **settings: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, values).check(Settings(**settings))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "value", "expected"),
    [
        ({"temperature": 3}, "temperature", "is 3", "a number between 0 and 2"),
        ({"top_p": 0}, "top_p", "is 0", "a number above 0 and at most 1"),
        ({"n": True}, "n", "is true", "a whole number between 1 and 128"),
        ({"n": 17}, "n", "is 17", "a whole number between 1 and 16"),
        ({"top_logprobs": 2}, "top_logprobs", "is given without logprobs", "logprobs to be true"),
        ({"stop": ["a"] * 17}, "stop", "is a list of 17", STOPS),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "is 1", "true or false"),
        ({"stream_options": 5}, "stream_options", "is 5", "an object"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "is 101", BIAS),
        ({"seed": 1, "random_seed": 2}, "random_seed", "and seed differ", "only one of the two"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "is 5", "at most max_tokens, which is 4"),
        ({"modalities": ["audio"]}, "modalities", "asks for more than text", '["text"]'),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_value_and_limit(
    fields: dict[str, Any], param: str, value: str, expected: str
) -> None:
    error = refusal(ChatBody, {**HELLO, **fields})
    assert (error.param, error.message) == (param, f"{param} {value}, expected {expected}")
    assert error.detail is not None and error.detail[0]["loc"][1] == param.split(".")[0]


def test_all_wrong_fields_are_in_the_detail() -> None:
    error = refusal(ChatBody, {"temperature": 3, "top_p": "a"})
    assert [d["loc"][1] for d in error.detail or ()] == ["temperature", "top_p", "messages"]
    assert error.body()["detail"] == error.detail


def test_null_is_as_if_it_were_not_there() -> None:
    names = [n for n in ChatBody.model_fields if n not in ("messages",)]
    body = read(ChatBody, {**HELLO, **dict.fromkeys(names)})
    body.check(Settings())
    assert body.ignored() == []


def test_what_nobody_reads_is_named() -> None:
    body = read(ChatBody, {**HELLO, "reasoning_effort": "low", "colour": "blue", "user": "me", "store": True})
    assert body.ignored() == ["colour", "reasoning_effort"]
    body = read(ChatBody, {**HELLO, "stream": True, "stream_options": {"include_usage": True, "pace": 1}})
    assert body.ignored() == ["stream_options.pace"]


def test_null_is_as_if_it_were_not_there_in_what_nobody_knows_either() -> None:
    body = read(ChatBody, {**HELLO, "colour": None, "stream_options": {"pace": None}}, is_strict=True)
    assert body.ignored() == [] and unknown_keys([{**HELLO["messages"][0], "mood": None}]) == []


def test_strict_refuses_it_and_knows_the_nearest() -> None:
    with pytest.raises(ApiError, match=r"temperatur is not a field .* did you mean 'temperature'") as caught:
        read(ChatBody, {**HELLO, "temperatur": 1}, is_strict=True)
    assert caught.value.param == "temperatur"


def test_no_name_gets_into_a_header_that_could_end_it() -> None:
    assert ignored_header(["a", "b\r\nset-cookie: x", "é", "c"]) == {"x-ignored-fields": "a, ?, c"}
    assert ignored_header([]) == {}


def test_best_of() -> None:
    assert refusal(CompletionBody, {"prompt": "a", "best_of": 1, "n": 2}).param == "best_of"
    assert refusal(CompletionBody, {"prompt": "a", "best_of": 17}).param == "best_of"
    assert refusal(CompletionBody, {"prompt": "a", "best_of": 2, "stream": True}).param == "best_of"


def test_what_is_given_becomes_arguments() -> None:
    body = read(ChatBody, {**HELLO, "top_k": -1, "random_seed": 5, "stop": "a", "typical_p": 1, "presence_penalty": 1})
    assert body.sampling() == {
        "temperature": 1.0, "seed": 5, "routing": False, "n": 1, "presence_penalty": 1, "stop": "a"
    }  # fmt: skip
