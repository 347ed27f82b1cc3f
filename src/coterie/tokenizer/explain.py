"""Why a text became these ids: for each token its piece, the text it stands for, and what is not obvious about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from coterie.tokenizer.marks import find_marks
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.stream import TextStream

__all__ = ["ExplainedToken", "explain"]

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")
_SPACES = re.compile(r"[▁ ]{2,}")


@dataclass(frozen=True)
class ExplainedToken:
    """One token. `text` is empty where the token adds none, or completes no character yet; `why` may be empty."""

    id: int
    piece: str
    text: str
    why: tuple[str, ...]


def explain(tokenizer: Tokenizer, ids: Sequence[int], text: str | None = None) -> list[ExplainedToken]:
    """One entry for each of `ids`; `text` is what was encoded, where it was one text."""
    texts = _texts(tokenizer, ids)
    pieces = [tokenizer.piece(i) for i in ids]
    reasons: list[list[str]] = [[] for _ in ids]
    _why_control(tokenizer, ids, pieces, reasons)
    _why_space(text, ids, pieces, texts, reasons, tokenizer)
    _why_bytes(pieces, texts, reasons)
    _why_digits(texts, reasons)
    _why_typed_mark(tokenizer, texts, reasons)
    rows = zip(ids, pieces, texts, reasons, strict=True)
    return [ExplainedToken(i, piece, part, tuple(why)) for i, piece, part, why in rows]


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each id completes; the last one takes what stays incomplete."""
    stream = TextStream(tokenizer)
    texts = [stream.push([i]) for i in ids]
    if texts:
        texts[-1] += stream.finish()
    return texts


def _why_control(tokenizer: Tokenizer, ids: Sequence[int], pieces: list[str], reasons: list[list[str]]) -> None:
    names = {tokenizer.bos_id: "begins the text (BOS)", tokenizer.eos_id: "ends the text (EOS)"}
    for i, piece, why in zip(ids, pieces, reasons, strict=True):
        if tokenizer.control_id(piece) == i:
            why.append(f"control token: {names[i]}" if i in names else "control token")


def _why_space(
    text: str | None,
    ids: Sequence[int],
    pieces: list[str],
    texts: list[str],
    reasons: list[list[str]],
    tokenizer: Tokenizer,
) -> None:
    """The space that SentencePiece puts in front of a text, and runs of spaces."""
    first = next((n for n, i in enumerate(ids) if tokenizer.control_id(pieces[n]) != i), None)
    for n, piece in enumerate(pieces):
        if n == first and piece.startswith("▁") and text is not None:
            reasons[n].append("▁ in front is the space that the tokenizer adds to a text")
        elif _SPACES.fullmatch(piece):
            reasons[n].append(f"a run of {len(piece)} spaces")
        elif piece == "▁":
            reasons[n].append("a space of its own: no piece joins it to what follows")


def _why_bytes(pieces: list[str], texts: list[str], reasons: list[list[str]]) -> None:
    """Characters spelled in bytes: `é` as `<0xC3>` `<0xA9>`. A run ends where a character is complete."""
    run: list[int] = []
    for n, (piece, text) in enumerate(zip(pieces, texts, strict=True)):
        if not _BYTES.fullmatch(piece):
            run = []
            continue
        run.append(n)
        if text:
            shown = " ".join(f"U+{ord(c):04X}" for c in text)
            for k, m in enumerate(run, start=1):
                which = f"byte {k} of {len(run)}" if len(run) > 1 else "the byte"
                reasons[m].append(f"{which} of {text!r} ({shown}), which has no piece of its own")
            run = []


def _why_digits(texts: list[str], reasons: list[list[str]]) -> None:
    """Digits of one number in tokens of their own."""
    digits = [len(text) == 1 and text.isdecimal() for text in texts]
    for n, is_digit in enumerate(digits):
        if is_digit and (digits[n - 1 : n] == [True] or digits[n + 1 : n + 2] == [True]):
            reasons[n].append("numbers are split into digits")


def _why_typed_mark(tokenizer: Tokenizer, texts: list[str], reasons: list[list[str]]) -> None:
    """Marks such as `</s>` that were typed: they stay text."""
    whole = "".join(texts)
    for mark, start in find_marks(whole):
        if tokenizer.control_id(mark) is None:
            continue
        at = 0
        for text, why in zip(texts, reasons, strict=True):
            if text and at < start + len(mark) and at + len(text) > start:
                why.append(f"{mark} in a text stays text, it is not the control token")
            at += len(text)
