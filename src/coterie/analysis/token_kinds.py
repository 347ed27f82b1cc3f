"""What kind of thing a token is: white space, punctuation, digits, a word's beginning, a keyword of Python.

The kind is read off the token's own text, whatever stands around it, so `for` is a keyword also in an English sentence;
`vocabulary.py` therefore counts kinds by domain. Vocabularies write spaces and bytes in three ways: `▁the` and `<0x0A>`
(SentencePiece), `Ġthe` and `Ċ` (byte-level BPE, whose letters stand for bytes), or as they are.
"""

import keyword
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "WORDS", "is_code", "kinds_of", "shown_piece", "texts_of"]

KINDS = (
    "line breaks", "indentation", "spaces", "digits", "punctuation", "operators and symbols", "Python keywords",
    "capitalised words", "words begin", "words go on", "bytes of rare characters", "control tokens", "mixed",
)  # fmt: skip
WORDS = ("capitalised words", "words begin", "words go on")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_KEYWORDS = frozenset(keyword.kwlist)
_CODE = re.compile(r"python|code|github|\.py\b|\bpy\b|humaneval|mbpp", re.IGNORECASE)


def kinds_of(pieces: Sequence[str]) -> NDArray[np.int64]:
    """The kind of each piece, as an index into `KINDS`."""
    by_name = {name: i for i, name in enumerate(KINDS)}
    return np.array([by_name[_kind(p, t)] for p, t in zip(pieces, texts_of(pieces), strict=True)], dtype=np.int64)


def texts_of(pieces: Sequence[str]) -> list[str]:
    """The text of each piece, spaces as spaces; U+FFFD for bytes that are no whole character."""
    is_bytes = sum(p.startswith("Ġ") for p in pieces) > sum(p.startswith("▁") for p in pieces)
    table = _byte_letters() if is_bytes else {}
    return [_text(piece, table) for piece in pieces]


def shown_piece(piece: str) -> str:
    """A piece for a table: control characters as escapes, spaces visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece).replace(" ", "▁")


def is_code(domain: str) -> bool:
    """Whether a domain's name says that it is code."""
    return bool(_CODE.search(domain))


def _text(piece: str, byte_letters: dict[str, int]) -> str:
    if byte_letters and all(c in byte_letters for c in piece):
        return bytes(byte_letters[c] for c in piece).decode("utf-8", errors="replace")
    if (found := _BYTE.findall(piece)) and _BYTE.sub("", piece) == "":
        return bytes(int(b, 16) for b in found).decode("utf-8", errors="replace")
    return piece.replace("▁", " ")


def _kind(piece: str, text: str) -> str:
    if not piece or (_CONTROL.fullmatch(piece) and not _BYTE.match(piece)):
        return "control tokens"
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "bytes of rare characters"
    if text.isspace():
        return "line breaks" if "\n" in text or "\r" in text else "spaces" if text == " " else "indentation"
    body = text.strip()
    if body in _KEYWORDS:
        return "Python keywords"
    if body.isnumeric():
        return "digits"
    groups = {unicodedata.category(c)[0] for c in body}
    if groups <= {"P"}:
        return "punctuation"
    if groups <= {"P", "S"}:
        return "operators and symbols"
    letters = body.strip("'’-_")
    if not letters or not all(unicodedata.category(c)[0] in "LM" for c in letters):
        return "control tokens" if groups <= {"C"} else "mixed"
    if letters[0].isupper():
        return "capitalised words"
    return "words begin" if text[0].isspace() else "words go on"


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level BPE writes for bytes: printable Latin-1 for itself, the others from U+0100 on."""
    table = {chr(b): b for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [b for b in range(256) if chr(b) not in table]
    return table | {chr(256 + n): b for n, b in enumerate(others)}
