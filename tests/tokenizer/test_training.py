from pathlib import Path

import pytest

from coterie.errors import TokenizerError
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


@pytest.mark.parametrize(("size", "sentence"), [(100, "between 512 and 65536"), (20000, "cannot be trained")])
def test_impossible_sizes(tmp_path: Path, size: int, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        train_sentencepiece([WORDS], size, tmp_path / "tokenizer.model")
