"""Train a byte-fallback BPE vocabulary with the settings of Mixtral's own (`model_facts`: identity normaliser, dummy
prefix, single digits, whitespace-only pieces), so that `unk` never occurs and every text round-trips."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from coterie.errors import TokenizerError

__all__ = ["require_trainable_size", "train_sentencepiece"]


_LONGEST = 20000  # bytes of a line; sentencepiece would leave out longer ones without a word


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Write a SentencePiece model of `vocab_size` pieces (unk 0, `<s>` 1, `</s>` 2, 256 bytes, then text) to `out`.

    Raises `TokenizerError` where the text has too little in it for that many pieces; `out` is not there then.
    """
    require_trainable_size(vocab_size)
    model, lines = io.BytesIO(), _Lines(texts)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
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
            max_sentence_length=_LONGEST,
            minloglevel=2,
        )
    except RuntimeError as e:
        if lines.error is not None:
            raise lines.error from None
        raise TokenizerError(
            f"a vocabulary of {vocab_size} pieces cannot be trained on this text: {_reason(str(e))}"
        ) from None
    out.write_bytes(model.getvalue())


def require_trainable_size(vocab_size: int) -> None:
    """`TokenizerError` where a vocabulary of so many pieces is not one that is trained here."""
    if not 512 <= vocab_size <= 65536:
        raise TokenizerError(f"vocab_size is {vocab_size}, expected between 512 and 65536")


class _Lines:
    """Lines with something in them, long ones cut at spaces (pieces never cross one) or, without any, anywhere.

    sentencepiece turns whatever reading raises, Ctrl-C too, into a `RuntimeError`; `error` is what it was.
    """

    def __init__(self, texts: Iterable[str]):
        self._texts = texts
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.split("\n"):
                    yield from (part for part in _parts(line) if part.strip())
        except BaseException as e:
            self.error = e
            raise


def _parts(line: str) -> Iterator[str]:
    while len(line.encode()) > _LONGEST:
        cut = line.rfind(" ", 1, _LONGEST // 4)  # a character has up to 4 bytes
        cut = cut if cut > 0 else _LONGEST // 4
        yield line[:cut]
        line = line[cut:].removeprefix(" ")
    yield line


def _reason(message: str) -> str:
    """sentencepiece's own words for the two cases that happen, in ours."""
    if most := re.search(r"value <= (\d+)", message):
        return f"it has enough for {most[1]} at most; ask for fewer or give more text"
    if "sentences_.empty()" in message:
        return "there is none; give it some"
    return message
