"""Bytes of tokens, exact encoding in the middle of a text, and what is kept."""

import gc
import weakref
from pathlib import Path

import pytest

from coterie.engine.grammar import Grammar
from coterie.engine.grammar_vocabulary import Recent, token_bytes, vocabulary_of
from coterie.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["une", " une école", '{"name": "日本 🙂"}', "\n\t  x", "</s>[INST]", "\x00\xff"]


@pytest.mark.parametrize("version", ["v1", "v3", "tekken"])
def test_forced_text_is_cut_into_the_tokenizers_own_tokens(version: str, mistral_files: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(mistral_files[version])
    vocabulary, data = vocabulary_of(tokenizer), token_bytes(tokenizer)
    for text in TEXTS:
        ids = vocabulary.tokenizer.tokenize_str(text)
        assert b"".join(data[i] or b"" for i in ids) == text.encode()
        assert len(ids) <= len(tokenizer.encode(text)) + 1


def test_a_tokenizer_that_does_not_say_its_bytes_is_asked(byte_tokenizer: Tokenizer) -> None:
    data = token_bytes(byte_tokenizer)
    assert data[:3] == [None, None, None] and data[3:] == [bytes([b]) for b in range(256)]


def test_which_tokens_lose_their_space(mistral_files: dict[str, Path], byte_tokenizer: Tokenizer) -> None:
    tokenizer = load_tokenizer(mistral_files["v1"])
    vocabulary = vocabulary_of(tokenizer)
    word, byte = tokenizer.encode("une")[0], 3 + 0x20
    assert tokenizer.piece(word).startswith("▁") and tokenizer.piece(byte) == "<0x20>"
    assert vocabulary.drops_space(word) and not vocabulary.drops_space(byte)
    assert vocabulary.drops_space_after([]) and vocabulary.drops_space_after([1])
    assert not vocabulary.drops_space_after([word]) and not vocabulary.drops_space_after([1, word, 1])
    assert not vocabulary_of(byte_tokenizer).drops_packed.any()


def test_a_tokenizer_can_go(mistral_files: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(mistral_files["v1"])
    Grammar.compile("regex", "a+", tokenizer)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_what_is_kept_is_bounded_by_bytes_and_by_number() -> None:
    recent = Recent(most_bytes=100, most=3)
    for key in "abcd":
        recent.put(key, key, 10)
    assert recent.get("a") is None and recent.get("b") == "b" and len(recent) == 3
    recent.put("e", "e", 90)  # c and d go, b was used last
    assert recent.get("b") == "b" and recent.get("d") is None and recent.n_bytes == 100
    recent.put("b", "new", 5)
    assert recent.get("b") == "new" and recent.n_bytes == 95
    recent.put("f", "f", 1000)
    assert len(recent) == 0 and recent.n_bytes == 0
