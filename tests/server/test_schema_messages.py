"""Messages: every malformed shape is a 400 that names the turn; text parts are joined; nothing is fetched."""

from typing import Any

import pytest

from coterie.server.failures import ApiError
from coterie.server.schema_messages import read_messages, unknown_keys


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ("hello", "messages"),
        ([], "messages"),
        ([123], "messages.0"),
        ([{}], "messages.0.role"),
        ([{"role": 123, "content": "a"}], "messages.0.role"),
        ([{"role": ["user"], "content": "a"}], "messages.0.role"),
        ([{"role": "wizard", "content": "a"}], "messages.0.role"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 123}], "messages.1.content"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "user", "content": ["a"]}], "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/"}]}], "messages.0.content.0"),
        ([{"role": "assistant", "content": None}], "messages.0.content"),
        ([{"role": "assistant", "content": "a", "prefix": 1}], "messages.0.prefix"),
        ([{"role": "assistant", "content": "a", "tool_calls": [5]}], "messages.0.tool_calls"),
        ([{"role": "tool", "content": "a", "tool_call_id": 5}], "messages.0.tool_call_id"),
        ([{"role": "user", "content": "a"}] * 5000, "messages"),
    ],
)  # fmt: skip
def test_a_malformed_shape_is_refused(messages: Any, param: str) -> None:
    with pytest.raises(ApiError, match=r"^messages") as caught:
        read_messages(messages)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_image_has_a_code_of_its_own() -> None:
    with pytest.raises(ApiError) as caught:
        read_messages([{"role": "user", "content": [{"type": "input_audio"}]}])
    assert caught.value.code == "unsupported_content"


def test_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "Once"}, {"type": "text", "text": "upon"}]
    assert read_messages([{"role": "developer", "content": "a"}, {"role": "user", "content": parts}]) == [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "Once\n\nupon"},
    ]


def test_an_answer_that_calls_tools_needs_no_text() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (turn,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert turn == {"role": "assistant", "tool_calls": [call], "content": ""}


def test_keys_that_nothing_reads_are_named_once() -> None:
    assert unknown_keys([{"role": "user", "content": "a", "mood": 1}, {"mood": 2}, 5]) == ["messages.mood"]
    assert unknown_keys(None) == []
