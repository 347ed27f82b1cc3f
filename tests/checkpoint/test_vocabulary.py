"""The tokenizer and chat form of a folder and of a GGUF file, through the same two functions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.checkpoint.vocabulary import open_vocabulary, require_vocabulary, template_of, write_vocabulary
from coterie.errors import TokenizerError

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
)


def test_a_folder(tiny_folder: Path) -> None:
    tokenizer, form = open_vocabulary(tiny_folder)
    assert tokenizer is not None and tokenizer.vocab_size == 340 and form is None
    assert template_of(tiny_folder) is None
    assert require_vocabulary(tiny_folder)[0].vocab_size == 340


def test_without_one(tmp_path: Path, make_tiny: Callable) -> None:
    path, _ = make_tiny().gguf()
    for place in (tmp_path / "empty", path):
        if place != path:
            place.mkdir()
        assert open_vocabulary(place) == (None, None)
        with pytest.raises(TokenizerError, match="token ids work without one"):
            require_vocabulary(place)


def test_a_gguf_file(make_tiny: Callable, tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": ("string", CHATML)}
    path, _ = make_tiny(vocab_size=300).gguf(vocabulary=True, keys=keys)
    tokenizer, _ = open_vocabulary(path)
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("né 1")) == "né 1"
    assert template_of(path) == CHATML
    (tmp_path / "out").mkdir()
    write_vocabulary(path, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"tokenizer.model", "chat_template.jinja"}
    back, _ = open_vocabulary(tmp_path / "out")
    assert back is not None and back.encode("né 1") == tokenizer.encode("né 1")


def test_more_tokens_than_rows_are_refused(make_tiny: Callable) -> None:
    from coterie.checkpoint.gguf import open_gguf
    from coterie.errors import CheckpointError

    tokens = {"tokenizer.ggml.tokens": ("array", [f"t{i}" for i in range(49)])}
    with pytest.raises(CheckpointError, match="has 49 tokens, and 48 rows in its embedding"):
        open_gguf(make_tiny(vocab_size=48).gguf(keys=tokens)[0])
