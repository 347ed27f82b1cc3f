"""A vocabulary through the keys of a GGUF file and back: the same ids as the original's, on real text and odd text."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint.hub import DEMO
from coterie.errors import TokenizerError
from coterie.tokenizer import Tokenizer, load_tokenizer
from coterie.tokenizer.gguf import gguf_tokenizer, vocabulary_files
from coterie.tokenizer.gguf_export import vocabulary_keys

ODD = [
    "",
    " ",
    "  two  spaces  ",
    "\ttab\n\n\nlines\r\n",
    "<s>[INST] Hi [/INST]</s>",
    "<|im_start|>user",
    "日本語 🙂 ﷺ \u200d \x00 \x7f",
    "a" * 300,
    "1234567890 3.14159",
    "Straße, l'œuvre, ¿qué?",
    "▁ ▁▁ under",
    "aaaa aaaaa aaaaaaa ///// ....... =====",
]


def as_read(keys: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """What a reader of the file would make of the keys."""
    return {
        k: np.asarray(v) if kind.startswith("array") and "string" not in kind else v for k, (kind, v) in keys.items()
    }


def through_keys(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    keys = vocabulary_keys(tokenizer, None, **{"vocab_size": tokenizer.vocab_size, **options})
    back = gguf_tokenizer(as_read(keys), "x.gguf")
    assert back is not None
    return back


def texts(data_dir: Path, n: int) -> list[str]:
    found = list(ODD)
    for language in ("de", "en", "es", "fr", "it", "python"):
        with gzip.open(data_dir / "text" / f"{language}.valid.jsonl.gz", "rt", encoding="utf-8") as f:
            whole = "\n".join(json.loads(next(f))["text"] for _ in range(3))
        found += [whole[i : i + 60] for i in range(0, 60 * n, 60)]
    return found


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
def test_mistrals_vocabularies_encode_real_text_as_the_originals(
    mistral_files: dict[str, Path], data_dir: Path, version: str
) -> None:
    original = load_tokenizer(mistral_files[version])
    back = through_keys(original)
    assert (back.kind, back.vocab_size) == ("sentencepiece", original.vocab_size)
    assert (back.bos_id, back.eos_id) == (original.bos_id, original.eos_id) == (1, 2)
    for text in texts(data_dir, 500 if version == "v1" else 50):
        ids = original.encode(text, bos=True)
        assert back.encode(text, bos=True) == ids
        assert back.decode(ids) == original.decode(ids)
    for mark in ("<s>", "[INST]", "[/INST]", "[PREFIX]"):
        assert back.control_id(mark) == original.control_id(mark)
    assert [back.piece(i) for i in range(back.vocab_size)] == [original.piece(i) for i in range(original.vocab_size)]


@pytest.mark.skipif(not (DEMO / "tokenizer.model").is_file(), reason="the model that ships is not there yet")
def test_the_shipped_models_vocabulary(data_dir: Path) -> None:
    original = load_tokenizer(DEMO)
    back = through_keys(original)
    for text in texts(data_dir, 200):
        assert back.encode(text) == original.encode(text)


def test_tekken_through_byte_level_merges(tekken: Tokenizer, data_dir: Path) -> None:
    back = through_keys(tekken)
    assert back.vocab_size == tekken.vocab_size and (back.bos_id, back.eos_id) == (tekken.bos_id, tekken.eos_id)
    for text in texts(data_dir, 200):
        ids = tekken.encode(text, bos=True)
        assert back.encode(text, bos=True) == ids, text
        assert back.decode(ids) == tekken.decode(ids)
    assert back.control_id("[INST]") == tekken.control_id("[INST]")
    again = through_keys(back)  # a tokenizer.json of this kind is written too
    assert all(again.encode(text) == back.encode(text) for text in ODD)


def test_a_vocabulary_comes_out_as_the_files_of_a_folder(v1: Tokenizer, tekken: Tokenizer, tmp_path: Path) -> None:
    for name, tokenizer in (("spm", v1), ("tekken", tekken)):
        keys = vocabulary_keys(tokenizer, "a {{ template }}", vocab_size=tokenizer.vocab_size)
        folder = tmp_path / name
        folder.mkdir()
        for file, contents in vocabulary_files(as_read(keys), "x.gguf").items():
            (folder / file).write_bytes(contents)
        assert (folder / "chat_template.jinja").read_text() == "a {{ template }}"
        back = load_tokenizer(folder)
        assert (back.bos_id, back.eos_id) == (1, 2)
        assert all(back.encode(text) == tokenizer.encode(text) for text in ODD)


def test_rows_beyond_the_vocabulary_get_unused_tokens_and_added_ones_their_names(
    tmp_path: Path, sentencepiece_bytes: bytes
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 341, "<|im_end|>": 340}))
    original = load_tokenizer(tmp_path)
    keys = vocabulary_keys(original, None, vocab_size=350, eos_ids=(2, 340))
    assert keys["tokenizer.ggml.eot_token_id"] == ("u32", 340)
    back = gguf_tokenizer(as_read(keys), "x.gguf")
    assert back is not None and back.vocab_size == 350
    assert back.control_id("<|im_start|>") == 341 and back.piece(349) == "[PAD349]"
    for text in (*ODD, "[PAD349]"):
        assert back.encode(text) == original.encode(text)
    with pytest.raises(TokenizerError, match="has 342 tokens, and the model 340"):
        vocabulary_keys(original, None, vocab_size=340)


def test_settings_of_the_normaliser_are_kept(v1: Tokenizer) -> None:
    keys = vocabulary_keys(v1, None, vocab_size=v1.vocab_size)
    for changed, text, expected in (
        ({"tokenizer.ggml.add_space_prefix": ("bool", False)}, "Hello", ["Hello"]),
        ({"tokenizer.ggml.remove_extra_whitespaces": ("bool", True)}, " a  b ", ["▁a", "▁b"]),
    ):
        back = gguf_tokenizer(as_read({**keys, **changed}), "x.gguf")
        assert back is not None and [back.piece(i) for i in back.encode(text)] == expected


def test_a_file_without_a_vocabulary_has_no_tokenizer() -> None:
    assert gguf_tokenizer({}, "x") is None
    assert gguf_tokenizer(as_read(vocabulary_keys(None, None, vocab_size=3)), "x") is None


def drop(key: str) -> Callable[[dict], None]:
    return lambda keys: keys.pop(f"tokenizer.ggml.{key}")


def put(key: str, value: Any) -> Callable[[dict], None]:
    return lambda keys: keys.update({f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (put("model", "bert"), "model is 'bert'"),
        (put("model", "gpt2"), "pre is 'default', which is not known"),
        (drop("tokens"), "tokens is missing"),
        (put("tokens", np.zeros(5)), "tokens is missing or no list of strings"),
        (drop("scores"), "scores is missing"),
        (put("scores", np.zeros(7, np.float32)), "scores should be a list of 340 numbers"),
        (put("scores", np.full(340, 1e300)), "scores has 1e+300, expected float32 numbers"),
        (put("scores", np.full(340, np.nan)), "scores has nan"),
        (put("token_type", np.full(340, 9)), "token_type has the value 9"),
        (put("bos_token_id", 400), "bos_token_id is 400, and there are 340 tokens"),
        (put("bos_token_id", "x"), "bos_token_id is 'x'"),
        (put("tokens", [b"same"] * 340), "not a complete SentencePiece model"),
        (put("tokens", [b"\xff\xfe"] * 340), "not a complete SentencePiece model"),
        (put("precompiled_charsmap", np.zeros(9)), "precompiled_charsmap is no list of bytes"),
    ],
)
def test_a_broken_vocabulary_is_one_sentence(
    sentencepiece_bytes: bytes, tmp_path: Path, edit: Callable, said: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    keys = as_read(vocabulary_keys(load_tokenizer(tmp_path), None, vocab_size=340))
    edit(keys)
    with pytest.raises(TokenizerError) as caught:
        gguf_tokenizer(keys, "x.gguf")
    assert said in str(caught.value)
