"""What a tokenizer is to the rest of the system: five attributes-and-answers every kind gives alike.

Two promises hold for all kinds. Text is only ever text: a control token that a user types (`</s>`, `[INST]`,
`<|im_start|>`) is encoded as the characters it is made of, and the one way to a control id is `control_id`.
And `decode` works from left to right: more ids never change the text before the last incomplete character,
which is what lets `TextStream` hand text out as it comes.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from coterie.errors import TokenizerError

__all__ = ["KnowsBytes", "SpacesOnce", "Tokenizer", "check_ids", "check_text"]


class Tokenizer(Protocol):
    """Text to ids and back. `vocab_size` counts every id of the files, added tokens included."""

    @property
    def kind(self) -> str:
        """`sentencepiece`, `tekken` or `tokenizer.json`: what the file is, not what it is called."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None where the files name none."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, or None where the files name none."""

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`; with `bos`, one BOS before them. `TokenizerError` for text that is not Unicode."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Control tokens and ids beyond the vocabulary add nothing; broken UTF-8 reads U+FFFD."""

    def piece(self, token_id: int) -> str:
        """The piece as the file has it: `▁une`, `<0x0A>`, `[INST]`; "" for an id that it leaves out.

        `TokenizerError` beyond the vocabulary.
        """

    def control_id(self, text: str) -> int | None:
        """The id of the control token spelled `text`, or None where there is no such control token."""


@runtime_checkable
class SpacesOnce(Protocol):
    """A tokenizer that may put its space only in front of the whole text, not again after each control token."""

    def encode_after_mark(self, text: str) -> list[int]:
        """The ids of text that follows a control token."""


@runtime_checkable
class KnowsBytes(Protocol):
    """A tokenizer that can say which bytes each token stands for; a grammar is about bytes."""

    def token_bytes(self) -> list[bytes | None]:
        """For each id its bytes, a space as a space; None for a control token, which has no text."""


def check_text(text: str) -> str:
    """`text`, or a `TokenizerError` where it could not be UTF-8 (a lone surrogate, as undecodable bytes become)."""
    if not isinstance(text, str):
        raise TokenizerError(f"the text to encode must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not valid UTF-8: character {error.start} is a lone surrogate "
            f"(U+{ord(text[error.start]):04X}); re-encode the text as UTF-8"
        ) from None
    return text


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """`ids` without those beyond the vocabulary: a model's rows may be padded past it, and they have no text."""
    try:
        smallest = min(ids, default=0)
        kept = [int(i) for i in ids if i < vocab_size]
    except (TypeError, ValueError):
        raise TokenizerError("token ids must be whole numbers") from None
    if smallest < 0:
        raise TokenizerError(f"token id {smallest} is negative; ids go from 0 to {vocab_size - 1}")
    return kept
