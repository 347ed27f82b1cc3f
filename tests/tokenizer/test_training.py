from collections.abc import Iterator
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from coterie.errors import DataError, TokenizerError
from coterie.tokenizer import load_tokenizer
from coterie.tokenizer.training import train_sentencepiece

WORDS = " ".join(a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "s", "t", "mi"))


def test_a_vocabulary_with_mixtrals_settings(tmp_path: Path) -> None:
    train_sentencepiece([WORDS, "two\nlines"], 512, tmp_path / "tokenizer.model")
    t = load_tokenizer(tmp_path)
    assert (t.vocab_size, t.bos_id, t.eos_id, t.piece(3), t.piece(258)) == (512, 1, 2, "<0x00>", "<0xFF>")
    assert t.decode(t.encode("漢 12\n  x")) == "漢 12\n  x"
    digits = [t.piece(i) for i in t.encode("12")]
    assert len(digits) >= 2 and digits[-1] in ("2", "<0x32>")


@pytest.mark.parametrize(
    ("size", "sentence"), [(100, "between 512 and 65536"), (20000, "it has enough for 796 at most; ask for fewer")]
)
def test_impossible_sizes(tmp_path: Path, size: int, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        train_sentencepiece([WORDS], size, tmp_path / "tokenizer.model")
    assert not (tmp_path / "tokenizer.model").exists()


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be trained on this text: there is none; give it some"):
        train_sentencepiece(["", " \n "], 512, tmp_path / "tokenizer.model")


@pytest.mark.parametrize("error", [DataError("line 3"), KeyboardInterrupt()])
def test_what_reading_raises_stays_what_it_is(tmp_path: Path, error: BaseException) -> None:
    def texts() -> Iterator[str]:
        yield WORDS
        raise error

    with pytest.raises(type(error)) as raised:
        train_sentencepiece(texts(), 512, tmp_path / "tokenizer.model")
    assert raised.value is error


def test_long_lines_are_not_left_out(tmp_path: Path) -> None:
    """sentencepiece leaves out lines of more than 20,000 bytes; cut at spaces they train the same vocabulary."""
    short = "\n".join([WORDS] * 20)
    train_sentencepiece([short], 512, tmp_path / "short")
    train_sentencepiece([short.replace("\n", " ")], 512, tmp_path / "long")
    short_pieces, long_pieces = (SentencePieceProcessor(model_file=str(tmp_path / n)) for n in ("short", "long"))
    assert [short_pieces.id_to_piece(i) for i in range(512)] == [long_pieces.id_to_piece(i) for i in range(512)]
    train_sentencepiece(["é" * 30_000 + WORDS], 512, tmp_path / "no spaces")
