"""SentencePiece models (Llama, Mistral v1 to v3, our own): the `sentencepiece` package does the work.

A base model and its instruct version often share one file, so the file says which control tokens exist, not whether the
model can chat. Tokens that a fine-tune added outside the model (`added_tokens.json`) come in as `added`; they are
control tokens here, never matched inside text.
"""

from collections.abc import Mapping, Sequence

import sentencepiece

from coterie.errors import TokenizerError
from coterie.tokenizer.protocol import check_ids, check_text
from coterie.tokenizer.sentencepiece_build import BYTE, NORMAL, USER_DEFINED
from coterie.tokenizer.sentencepiece_file import SentencePieceFile, checked_model, read_model

__all__ = ["SentencePieceTokenizer"]

_APART = "\0"  # a character that no piece but its own byte contains, so nothing merges with it


class SentencePieceTokenizer:
    """`data`: the bytes of the model file; `source`: its name for messages; `added`: further control tokens -> ids;
    `special`: {"eos_token": "<|im_end|>"}, where the folder's settings name another token than the model's own;
    `legacy`: Hugging Face's word for a space in front of text after a control token too, as the first models had it.

    Raises `TokenizerError` where `data` is no complete SentencePiece model.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        data: bytes,
        *,
        source: str = "tokenizer.model",
        added: Mapping[str, int] | None = None,
        special: Mapping[str, str] | None = None,
        legacy: bool = True,
    ):
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(checked_model(data, source))
        except (RuntimeError, ValueError, TypeError) as error:
            raise TokenizerError(
                f"{source} is not a complete SentencePiece model ({_first_line(error)}); fetch the file again"
            ) from None
        self._legacy = legacy
        self.n_pieces: int = self._model.get_piece_size()
        self._added = {text: i for text, i in (added or {}).items() if i >= self.n_pieces}
        self._added_text = {i: text for text, i in self._added.items()}
        self.vocab_size: int = max([self.n_pieces - 1, *self._added_text]) + 1
        self.bos_id = self._special_id("bos_token", special, self._model.bos_id())
        self.eos_id = self._special_id("eos_token", special, self._model.eos_id())

    @property
    def added(self) -> dict[str, int]:
        """Control tokens that are not in the model file."""
        return dict(self._added)

    def contents(self) -> SentencePieceFile:
        """What the model file holds, marks made control tokens."""
        return read_model(self._model.serialized_model_proto(), "the vocabulary")

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`, after one BOS with `bos`."""
        ids: list[int] = self._model.encode(check_text(text))
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_after_mark(self, text: str) -> list[int]:
        """The ids of text that follows a control token: without the space in front where `legacy` is off."""
        if self._legacy:
            return self.encode(text)
        start = self.encode(_APART)
        ids = self.encode(_APART + text)
        return ids[len(start) :] if ids[: len(start)] == start else self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens and without the space that encoding put in front."""
        text: str = self._model.decode(check_ids(ids, self.n_pieces))
        return text

    def piece(self, token_id: int) -> str:
        """The piece of `token_id` as the model has it."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        if token_id >= self.n_pieces:
            return self._added_text.get(token_id, "")
        piece: str = self._model.id_to_piece(token_id)
        return piece

    def token_bytes(self) -> list[bytes | None]:
        """For each id its bytes: `▁une` is ` une`, `<0xE9>` that byte; None for a control token."""
        file = self.contents()
        found = [_bytes(piece, kind) for piece, kind in zip(file.pieces, file.types, strict=True)]
        return found + [None] * (self.vocab_size - len(found))

    def control_id(self, text: str) -> int | None:
        """The id of the control token `text`, or None."""
        if text in self._added:
            return self._added[text]
        token_id: int = self._model.piece_to_id(text)
        special = self._model.is_control(token_id) or self._model.is_unknown(token_id)
        return token_id if special and self._model.id_to_piece(token_id) == text else None

    def _special_id(self, key: str, special: Mapping[str, str] | None, own: int) -> int | None:
        """The id that the folder's settings name (a ChatML fine-tune ends with `<|im_end|>`), else the model's own."""
        named = self.control_id(special[key]) if special and key in special else None
        return _or_none(own) if named is None else named


def _bytes(piece: bytes, kind: int) -> bytes | None:
    if kind == BYTE:
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁".encode(), b" ") if kind in (NORMAL, USER_DEFINED) else None


def _or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None  # the package answers -1 for "none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(" [")[0]
