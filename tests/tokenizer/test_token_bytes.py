"""Which bytes each token stands for: the bytes of an encoding, joined, are those of the text."""

from typing import Any

import pytest

from coterie.tokenizer import Tokenizer, load_tokenizer
from coterie.tokenizer.protocol import KnowsBytes

TEXTS = ["une", "Zażółć 日本 🙂👨‍👩‍👧", "def f(x):\n    return 'é'", "\x00\x7f  \t", "1234 </s>"]


def joined(tokenizer: Tokenizer, text: str) -> bytes:
    assert isinstance(tokenizer, KnowsBytes)
    data = tokenizer.token_bytes()
    assert len(data) == tokenizer.vocab_size
    return b"".join(data[i] or b"?" for i in tokenizer.encode(text))


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "tekken"])
def test_bytes_of_mistrals_vocabularies(version: str, request: pytest.FixtureRequest) -> None:
    space = b"" if version == "tekken" else b" "
    for text in TEXTS:
        assert joined(request.getfixturevalue(version), text) == space + text.encode()


def test_control_tokens_have_none(v3: Tokenizer, tekken: Tokenizer) -> None:
    for tokenizer in (v3, tekken):
        assert isinstance(tokenizer, KnowsBytes)
        data = tokenizer.token_bytes()
        for mark in ("<s>", "</s>", "[INST]", "[TOOL_CALLS]"):
            token_id = tokenizer.control_id(mark)
            assert token_id is not None and data[token_id] is None


def test_bytes_of_a_tokenizer_json(chatml_json: dict[str, Any], folder_with: Any) -> None:
    tokenizer = load_tokenizer(folder_with({"tokenizer.json": chatml_json}))
    for text in TEXTS:
        assert joined(tokenizer, text) == b" " + text.encode()
    assert tokenizer.token_bytes()[32000:] == [None, None]  # type: ignore[attr-defined]


def test_bytes_of_a_byte_level_tokenizer_json(folder_with: Any) -> None:
    from coterie.tokenizer.surface import byte_level_bytes

    vocab = {c: i for i, c in enumerate(byte_level_bytes())} | {"Ġthe": 256, "Ã©": 257}
    content = {
        "added_tokens": [
            {"id": 258, "content": "<end>", "special": True},
            {"id": 259, "content": "Ġé", "special": False},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["Ã", "©"]]},
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{**token, **flags} for token in content["added_tokens"]]  # type: ignore[attr-defined]
    tokenizer: Any = load_tokenizer(folder_with({"tokenizer.json": content}))
    data = tokenizer.token_bytes()
    assert (data[256], data[257], data[258], data[259]) == (b" the", "é".encode(), None, "Ġé".encode())
    assert joined(tokenizer, "é\x00 z") == "é\x00 z".encode()
