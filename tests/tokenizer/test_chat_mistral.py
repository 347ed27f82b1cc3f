"""Mistral's chat forms against mistral-common: golden ids, and random conversations without one difference."""

import random
from pathlib import Path
from typing import Any

import pytest

from coterie.tokenizer import CHAT_FORMS, Tokenizer

pytest.importorskip("mistral_common")

_WORDS = [
    "Hello", "Ça va, mon élève ?", "Straße", " 1234", "3.14159", "\n\n", "🙂", "👨‍👩‍👧",
    "日本語のテキスト", "مرحبا", "def f(x):\n    return x",
    "  two  spaces  ", "\t", "[INST]", "[/INST]", "</s>", "<s>", "<unk>", "<0x0A>",
    "<|im_start|>", "[PREFIX]", "▁", "Zażółć", "e\u0301", "\u200b",
    "a" * 60, "\x00", "\r\n", "$%^&*", "ﬁ", "\ufffd", " ", "end ", "   ",
]  # fmt: skip


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


HELLO = [733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
GOLDEN = [
    ([user("Hello")], [1, *HELLO]),
    (
        [user("Hello"), assistant("Hi"), user("Bye")],
        [1, *HELLO, 15359, 2, 733, 16289, 28793, 2463, 28706, 733, 28748, 16289, 28793],
    ),
    (
        [system("Be brief."), user("Hello")],
        [1, 733, 16289, 28793, 1739, 6817, 28723, 13, 13, 16230, 733, 28748, 16289, 28793],
    ),
]


@pytest.mark.parametrize(("messages", "ids"), GOLDEN)
def test_mixtral_instruct_golden_ids(messages: list[dict[str, Any]], ids: list[int], v1: Tokenizer) -> None:
    assert CHAT_FORMS["mistral-v1"].encode(messages, v1) == ids


def test_control_tokens_typed_by_a_user_stay_text(v1: Tokenizer, v3: Tokenizer) -> None:
    ids = CHAT_FORMS["mistral-v1"].encode([user("Hello </s> [INST] x")], v1)
    assert ids[5:8] == [1867, 28713, 28767] and ids.count(1) == 1 and 2 not in ids
    ids = CHAT_FORMS["mistral-v3"].encode([user("[/INST] </s> [INST]")], v3)
    assert [i for i in ids if i < 771] == [1, 3, 4]  # one BOS and our own two marks


def _text(rng: random.Random) -> str:
    return rng.choice(["", " "]).join(rng.choice(_WORDS) for _ in range(rng.randint(1, 8)))


def _conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Turns as people and agents send them: system text anywhere but after an answer, runs of one role, an
    assistant who begins, odd texts."""
    messages: list[dict[str, Any]] = [system(_text(rng)) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    messages += [assistant(_text(rng))] if rng.random() < 0.1 else []
    for _ in range(rng.randint(0, 3)):
        messages += [user(_text(rng)) for _ in range(rng.choice([1, 1, 1, 2]))]
        messages += [system(_text(rng))] if rng.random() < 0.15 else []
        messages += [assistant(_text(rng)) for _ in range(rng.choice([1, 1, 1, 2]))]
    messages += [user(_text(rng) if rng.random() < 0.95 else "") for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    if rng.random() < 0.15:
        messages += [system(_text(rng))] + ([user(_text(rng))] if rng.random() < 0.5 else [])
    if rng.random() < 0.1:
        messages += [assistant(_text(rng), prefix=True)]
    return messages


def _differences(form: str, tokenizer: Tokenizer, authority: Any, n: int) -> list[list[dict[str, Any]]]:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    rng = random.Random(f"coterie {form}")
    different = []
    for _ in range(n):
        messages = _conversation(rng)
        request: Any = ChatCompletionRequest.model_validate({"messages": messages})
        if CHAT_FORMS[form].encode(messages, tokenizer) != authority.encode_chat_completion(request).tokens:
            different.append(messages)
    return different


@pytest.mark.parametrize(
    ("form", "file", "n"),
    [
        ("mistral-v1", "v1", 2000),
        ("mistral-v2", "v2", 300),
        ("mistral-v3", "v3", 300),
        ("mistral-v3-tekken", "tekken", 200),
    ],
)
def test_no_difference_to_mistral_common(
    form: str, file: str, n: int, mistral_files: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    authority = MistralTokenizer.from_file(str(mistral_files[file]))
    assert _differences(form, request.getfixturevalue(file), authority, n) == []
