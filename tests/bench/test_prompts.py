"""Prompts: of the right length, all different, the same for the same seed; files with good and bad lines."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.bench.client import Failure
from coterie.bench.prompts import Lengths, Words, find_model, random_prompts, read_prompts, words_of
from coterie.errors import DataError

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def with_api(api: Callable[..., Any], answers: dict[str, Any], work: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with api(answers) as fake:
            return await work(fake.client)

    return asyncio.run(run())


def test_ids_of_the_middle_of_the_vocabulary_all_different_and_repeatable() -> None:
    made = random_prompts(Words(1000), Lengths(50, 8), 20, 3, TEXT)
    assert {p.n_tokens for p in made} == {50} and {p.body["max_tokens"] for p in made} == {8}
    assert all(100 <= i < 900 for p in made for i in p.body["prompt"])
    assert len({tuple(p.body["prompt"]) for p in made}) == 20
    assert made == random_prompts(Words(1000), Lengths(50, 8), 20, 3, TEXT)
    assert made != random_prompts(Words(1000), Lengths(50, 8), 20, 4, TEXT)


def test_a_prefix_is_the_same_in_all_and_lengths_spread() -> None:
    made = random_prompts(Words(1000), Lengths(10, 10, 6, 0.5), 200, 0, TEXT)
    assert len({tuple(p.body["prompt"][:6]) for p in made}) == 1
    assert {len(p.body["prompt"]) for p in made} == set(range(11, 22))
    assert {p.body["max_tokens"] for p in made} == set(range(5, 16))


def test_chats_are_words() -> None:
    (prompt,) = random_prompts(Words(None, 2.0), Lengths(40, 4, 10), 1, 0, CHAT)
    (message,) = prompt.body["messages"]
    assert message["role"] == "user" and len(message["content"].split()) == 25 and prompt.n_tokens is None


@pytest.mark.parametrize(
    ("card", "size"),
    [
        ({"id": "m", "coterie": {"vocab_size": 512}}, 512),
        ({"id": "m", "meta": {"n_vocab": 32000}}, 32000),
        ({"id": "m", "meta": None}, None),
        ({"id": "m", "coterie": {"vocab_size": True}}, None),
        ({"id": "m", "coterie": {"vocab_size": 10**12}}, None),
    ],
)
def test_the_model_and_its_vocabulary(api: Callable[..., Any], answers: Any, card: Any, size: int | None) -> None:
    listed = {"/v1/models": answers.reply(json.dumps({"data": [card]}).encode())}
    assert with_api(api, listed, lambda c: find_model(c, None)) == ("m", size)
    assert with_api(api, listed, lambda c: find_model(c, "other")) == ("other", None)


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"data": [{}]}', b'{"data": 3}', b'{"data": []}', b"x"])
def test_a_server_without_models_needs_a_name_at_most(api: Callable[..., Any], answers: Any, body: bytes) -> None:
    with pytest.raises(Failure):
        with_api(api, {"/v1/models": answers.reply(body)}, lambda c: find_model(c, None))
    assert with_api(api, {}, lambda c: find_model(c, "m")) == ("m", None)


def test_words_are_measured_by_the_server(api: Callable[..., Any], answers: Any) -> None:
    listed = {"/tokenize": answers.reply(json.dumps({"tokens": [1] * 1200}).encode())}
    assert with_api(api, listed, lambda c: words_of(c, CHAT, "m", 500)) == Words(None, 3.0)
    assert with_api(api, {}, lambda c: words_of(c, TEXT, "m", None)) == Words(None)
    assert with_api(api, {}, lambda c: words_of(c, TEXT, "m", 500)) == Words(500)


def test_a_file_is_read_from_its_beginning_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 2}\n\n{"prompt": "b"}\n', "utf-8")
    made = read_prompts(path, 3, 9, TEXT)
    assert [p.body for p in made] == [
        {"prompt": "a", "max_tokens": 2},
        {"prompt": "b", "max_tokens": 9},
        {"prompt": "a", "max_tokens": 2},
    ]
    assert read_prompts(path, 1, 9, CHAT)[0].body["messages"] == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no prompt"),
        ("{oops", "line 1: is not JSON"),
        ("[" * 100_000, "line 1: is not JSON"),
        ("[1]", "line 1: expected"),
        ('{"prompt": 3}', "line 1: expected"),
        ('{"prompt": ""}', "line 1: expected"),
        ('{"prompt": "x", "output_tokens": 0}', "output_tokens is 0"),
        ('{"prompt": "x", "max_tokens": true}', "output_tokens is True"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "need --endpoint /v1/chat/completions"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=says):
        read_prompts(path, 1, 9, TEXT)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(path, 1, 9, TEXT)
