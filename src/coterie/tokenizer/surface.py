"""Vocabulary pieces to text, for files whose own decoder cannot be streamed (`tokenizer.json`).

Three ways to write pieces exist in the family. SentencePiece's: `▁` is a space, `<0x0A>` a byte. Byte-level (GPT-2):
each character stands for one byte, printable bytes for themselves and the others moved up to U+0100. Plain: words.
Each decoder here reads from left to right: more pieces never change the text before the last incomplete character.
"""

import re
from collections.abc import Iterable, Set

__all__ = ["byte_level_bytes", "decode_byte_level", "decode_plain", "decode_sentencepiece", "piece_bytes"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def byte_level_bytes() -> dict[str, int]:
    """GPT-2's alphabet, character -> byte: `!` is 0x21, `é` 0xE9, `Ġ` (U+0120) the space 0x20, `Ċ` (U+010A) 0x0A."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


_BYTE_LEVEL = {c: bytes([b]) for c, b in byte_level_bytes().items()}


def decode_byte_level(pieces: Iterable[str | None], alphabet: dict[str, int], added: frozenset[str]) -> str:
    """None is a control token; `added` pieces are text as they stand. Broken UTF-8: one U+FFFD for each sequence."""
    data = bytearray()
    for piece in pieces:
        if piece is None:
            continue
        if piece in added:
            data += piece.encode()
        else:
            for c in piece:
                data += bytes([alphabet[c]]) if c in alphabet else c.encode()
    return data.decode("utf-8", "replace")


def decode_sentencepiece(pieces: Iterable[str | None], *, strips_space: bool) -> str:
    """None is a control token; it ends a run of byte pieces. Broken UTF-8: one U+FFFD for each byte.

    `strips_space`: the first piece with text loses the space that encoding put in front.
    """
    parts: list[str] = []
    run = bytearray()
    is_first = strips_space
    for piece in pieces:
        if piece is not None and (match := _BYTE_PIECE.fullmatch(piece)):
            run.append(int(match[1], 16))
            is_first = False
            continue
        parts.append(_run_text(run))
        run.clear()
        if piece:
            text = piece.replace("▁", " ")
            parts.append(text.removeprefix(" ") if is_first else text)
            is_first = False
    parts.append(_run_text(run))
    return "".join(parts)


def decode_plain(pieces: Iterable[str | None]) -> str:
    """Words with a space between; None is a control token."""
    return " ".join(piece for piece in pieces if piece is not None)


def piece_bytes(piece: str, decoders: Set[str], added: Set[str]) -> bytes:
    """The bytes of one piece that is not a control token; `decoders` are the kinds that the file names."""
    if "ByteLevel" in decoders:
        return piece.encode() if piece in added else b"".join(_BYTE_LEVEL.get(c) or c.encode() for c in piece)
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()


def _run_text(run: bytearray) -> str:
    return _ESCAPED_BYTE.sub(_BROKEN, run.decode("utf-8", "surrogateescape")) if run else ""
