"""Mistral's tekken files (JSON, byte-level), through `mistral-common`.

Mistral's v1, v2 and v3 SentencePiece files need nothing of their own: `mistral-common` reads them with `sentencepiece`
too, and what differs between them is the chat form (`chat_forms.py`). `mistral_version` tells them apart by the
control tokens they hold, as no file says its version.
"""

from collections.abc import Sequence
from pathlib import Path

from coterie.errors import TokenizerError
from coterie.tokenizer.protocol import Tokenizer, check_ids, check_text

__all__ = ["TekkenTokenizer", "mistral_version"]


class TekkenTokenizer:
    """The tokenizer in the tekken file `path`. Raises `TokenizerError` where `mistral-common` refuses the file.

    `version`: as the file names it, e.g. `v3`.
    """

    kind = "tekken"

    def __init__(self, path: Path):
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # half a second: only who needs it waits

        try:
            self._model = Tekkenizer.from_file(path)
        except Exception as error:  # asserts, KeyError, binascii.Error, ValueError: whatever the file provokes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TokenizerError(f"{path} is not a tekken file that mistral-common reads: {reason[:200]}") from None
        self.version = str(self._model.version.value)
        self.vocab_size: int = self._model.n_words
        self.bos_id: int | None = self.control_id("<s>")
        self.eos_id: int | None = self.control_id("</s>")

    @property
    def pattern(self) -> str:
        """The regular expression that cuts text into words."""
        return str(self._model._model._pat_str)

    def contents(self) -> list[bytes | str]:
        """For each id the bytes of its piece, or the text of a control token."""
        special = self._model.num_special_tokens
        return [
            self._model.id_to_piece(i) if i < special else self._model.id_to_byte_piece(i)
            for i in range(self.vocab_size)
        ]

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`, after one BOS with `bos`."""
        return self._model.encode(check_text(text), bos=bos, eos=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""
        return self._model.decode(check_ids(ids, self.vocab_size))

    def piece(self, token_id: int) -> str:
        """The piece's text; bytes that are no whole characters as `<0xE2><0x82>`."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        if self._model.is_special(token_id):
            return self._model.id_to_piece(token_id)
        data = self._model.id_to_byte_piece(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{b:02X}>" for b in data)

    def token_bytes(self) -> list[bytes | None]:
        """For each id its bytes; None for a control token."""
        return [content if isinstance(content, bytes) else None for content in self.contents()]

    def control_id(self, text: str) -> int | None:
        """The id of the control token `text`, or None."""
        return self._model.get_special_token(text) if self._model.is_special(text) else None


def mistral_version(tokenizer: Tokenizer) -> str:
    """`v1` (no instruct marks), `v2`, `v3` or `v7`, by content: each version named more of the control tokens."""
    if isinstance(tokenizer, TekkenTokenizer):
        return tokenizer.version
    if tokenizer.control_id("[INST]") is None or tokenizer.control_id("[/INST]") is None:
        return "v1"
    if tokenizer.control_id("[SYSTEM_PROMPT]") is not None:
        return "v7"
    return "v2" if tokenizer.control_id("[PREFIX]") is None else "v3"
