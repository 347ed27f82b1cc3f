from pathlib import Path

import pytest

from coterie.tokenizer import load_tokenizer
from coterie.tokenizer.export import write_huggingface_tokenizer

TEXTS = [
    "Il était une fois",
    " two  spaces ",
    "Straße 1234",
    "def f(x):\n    x\n\n",
    "日本 🙂",
    "",
    "\t<s>",
    "a" * 40,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_bytes: bytes) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes)
    write_huggingface_tokenizer(folder / "tokenizer.model", folder)
    return folder


def test_transformers_encodes_as_sentencepiece_does(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert ours.kind == "sentencepiece"
    for text in TEXTS:
        if "<s>" not in text and text:
            assert theirs(text)["input_ids"] == ours.encode(text, bos=True), text


def test_the_tokenizer_json_alone_gives_the_same_ids_and_text(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    theirs, ours = load_tokenizer(tmp_path), load_tokenizer(folder)
    assert theirs.kind != ours.kind and (theirs.bos_id, theirs.eos_id) == (ours.bos_id, ours.eos_id)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids and theirs.decode(ids) == ours.decode(ids) == text
