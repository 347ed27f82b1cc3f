"""Train a byte-fallback BPE vocabulary with the settings of Mixtral's own (`model_facts`: identity normaliser, dummy
prefix, single digits, whitespace-only pieces), so that `unk` never occurs and every text round-trips."""

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from coterie.errors import TokenizerError

__all__ = ["train_sentencepiece"]


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Write a SentencePiece model of `vocab_size` pieces (unk 0, `<s>` 1, `</s>` 2, 256 bytes, then text) to `out`."""
    if not 512 <= vocab_size <= 65536:
        raise TokenizerError(f"vocab_size is {vocab_size}, expected between 512 and 65536")
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    with out.open("wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=file,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                character_coverage=0.9999,
                normalization_rule_name="identity",
                add_dummy_prefix=True,
                remove_extra_whitespaces=False,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                max_sentencepiece_length=16,
                max_sentence_length=20000,
                minloglevel=2,
            )
        except RuntimeError as e:
            raise TokenizerError(f"a vocabulary of {vocab_size} pieces cannot be trained on this text: {e}") from None
