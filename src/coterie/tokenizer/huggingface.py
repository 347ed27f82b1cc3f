"""`tokenizer.json` files, through the `tokenizers` package; decoding is our own.

Two surprises. In text, `tokenizers` turns every added token into its id, so `</s>` typed by a user would end the
answer: special tokens are switched off (`encode_special_tokens`), and added tokens that look like marks (`<...>`,
`[...]`) count as special even where the file forgot to say so. And its byte-fallback decoder turns a whole run of byte
pieces into U+FFFD when one of them is bad, which could never be streamed; ours reads left to right, as
SentencePiece does for the same vocabulary.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from coterie.errors import TokenizerError
from coterie.tokenizer.marks import is_mark
from coterie.tokenizer.protocol import check_ids, check_text
from coterie.tokenizer.surface import (
    byte_level_bytes,
    decode_byte_level,
    decode_plain,
    decode_sentencepiece,
    piece_bytes,
)

__all__ = ["HuggingFaceTokenizer"]

_DECODERS = {"ByteLevel", "ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"}


class HuggingFaceTokenizer:
    """`content`: the parsed file; `source`: its name for messages; `special`: {"bos_token": "<s>"}, as settings say.

    Raises `TokenizerError` for a file that `tokenizers` refuses or whose way of decoding is not one of the family's.
    """

    kind = "tokenizer.json"

    def __init__(
        self,
        content: Mapping[str, Any],
        *,
        source: str = "tokenizer.json",
        special: Mapping[str, str] | None = None,
    ):
        added = _added_tokens(content, source)
        self._source, self._content = source, {**content, "added_tokens": added}
        self._model = _build(self._content, source)
        self._unspaced: Any = None  # the same without a space in front, once a chat form asks for it
        self._decode = _decoder(content, frozenset(a["content"] for a in added), source)
        vocab: dict[str, int] = self._model.get_vocab(with_added_tokens=True)  # its ids count, an odd file's do not
        self._control_ids = {a["content"]: vocab[a["content"]] for a in added if a["special"] and a["content"] in vocab}
        self._pieces = {i: piece for piece, i in vocab.items()}
        self._texts = {i: None if piece in self._control_ids else piece for i, piece in self._pieces.items()}
        self.vocab_size: int = max(self._pieces, default=-1) + 1
        names = {"bos_token": "<s>", "eos_token": "</s>", **(special or {})}
        self.bos_id: int | None = self.control_id(names["bos_token"])
        self.eos_id: int | None = self.control_id(names["eos_token"])

    @property
    def content(self) -> Mapping[str, Any]:
        """The parsed file, marks among the added tokens made special."""
        return self._content

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`, after one BOS with `bos`; the file's own post-processor is not asked."""
        ids = self._ids(self._model, text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_after_mark(self, text: str) -> list[int]:
        """The ids of text that follows a control token: without the space in front where the file adds it only once."""
        pre = self._content.get("pre_tokenizer")
        if not isinstance(pre, dict) or pre.get("prepend_scheme") != "first":
            return self.encode(text)
        if self._unspaced is None:
            self._unspaced = _build(
                {**self._content, "pre_tokenizer": {**pre, "prepend_scheme": "never"}}, self._source
            )
        return self._ids(self._unspaced, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens and without the space that encoding put in front."""
        return self._decode(self._texts.get(i) for i in check_ids(ids, self.vocab_size))

    def piece(self, token_id: int) -> str:
        """The piece of `token_id` as the file has it."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        return self._pieces.get(token_id, "")

    def token_bytes(self) -> list[bytes | None]:
        """For each id its bytes; None for a control token and for an id that the file leaves out."""
        kinds = _decoder_types(self._content.get("decoder"))
        added = frozenset(a["content"] for a in self._content["added_tokens"])
        return [
            None if (piece := self._texts.get(i)) is None else piece_bytes(piece, kinds, added)
            for i in range(self.vocab_size)
        ]

    def control_id(self, text: str) -> int | None:
        """The id of the control token `text`, or None."""
        return self._control_ids.get(text)

    def _ids(self, model: Any, text: str) -> list[int]:
        try:
            ids: list[int] = model.encode(check_text(text), add_special_tokens=False).ids
        except TokenizerError:
            raise
        except Exception as error:  # bare, as for a file: a token for what is unknown may be named and not be there
            raise TokenizerError(f"{self._source} cannot encode this text: {error}") from None
        return ids


def _added_tokens(content: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The file's added tokens, marks among them made special; `TokenizerError` where they are not as they should be."""
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise TokenizerError(f"{source}: `added_tokens` must be a list")
    for token in added:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)):
            raise TokenizerError(f"{source}: each of `added_tokens` must have a `content` and an `id`")
    return [{**token, "special": bool(token.get("special")) or is_mark(token["content"])} for token in added]


def _build(content: Mapping[str, Any], source: str) -> Any:
    """The `tokenizers.Tokenizer`, with special tokens in text, truncation and padding switched off."""
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises bare Exception for whatever it cannot read
        raise TokenizerError(f"{source} is not a tokenizer that the `tokenizers` package reads: {error}") from None
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    return model


def _decoder(content: Mapping[str, Any], added: frozenset[str], source: str) -> Callable[[Iterable[str | None]], str]:
    """How to read the pieces, by the decoder that the file names."""
    kinds = _decoder_types(content.get("decoder"))
    if unknown := kinds - _DECODERS:
        raise TokenizerError(
            f"{source} decodes by {', '.join(sorted(unknown))}, which is not supported; expected a byte-level or a "
            "SentencePiece-like vocabulary"
        )
    if "ByteLevel" in kinds:
        alphabet = byte_level_bytes()
        return lambda pieces: decode_byte_level(pieces, alphabet, added)
    if kinds:
        strips_space = bool(kinds & {"Strip", "Metaspace"})
        return lambda pieces: decode_sentencepiece(pieces, strips_space=strips_space)
    return decode_plain


def _decoder_types(decoder: Any) -> set[str]:
    """The types in a decoder of the file, those inside a Sequence one by one."""
    if not isinstance(decoder, dict):
        return set()
    if decoder.get("type") == "Sequence":
        return set().union(*(_decoder_types(d) for d in decoder.get("decoders") or []))
    return {str(decoder.get("type"))}
