"""A tokenizer as llguidance sees it: the bytes of every token, what ends a text, how forced text is cut into tokens.

Where a grammar leaves one way to go on, llguidance allows only the token that the tokenizer itself would use there, so
encoding has to be exact: the ids of "une" inside a text. SentencePiece puts a space in front of whatever it encodes;
behind a character that merges with nothing it puts none.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from coterie.tokenizer import Tokenizer
from coterie.tokenizer.protocol import KnowsBytes
from coterie.tokenizer.surface import piece_bytes

__all__ = ["Recent", "Vocabulary", "token_bytes", "vocabulary_of"]

_APART = "\0"
_MOST_BYTES = 64 << 20  # of compiled grammars kept, by their estimates
_MOST_GRAMMARS = 256


class Recent:
    """The values used last, within a number of bytes and of entries. For several threads."""

    def __init__(self, most_bytes: int = _MOST_BYTES, most: int = _MOST_GRAMMARS):
        self._most_bytes, self._most = most_bytes, most
        self._held: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> object | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Hashable, value: object, n_bytes: int) -> None:
        with self._lock:
            self.n_bytes += n_bytes - self._held.pop(key, (None, 0))[1]
            self._held[key] = (value, n_bytes)
            while self._held and (self.n_bytes > self._most_bytes or len(self._held) > self._most):
                self.n_bytes -= self._held.popitem(last=False)[1][1]


class Vocabulary:
    """llguidance's form of one tokenizer, and the grammars compiled for it. Takes 0.1 s for 32,000 tokens."""

    def __init__(self, tokenizer: Tokenizer):
        data = token_bytes(tokenizer)
        self.n_tokens = len(data)
        self.eos_id = self.n_tokens if tokenizer.eos_id is None else tokenizer.eos_id
        drops = [piece is not None and _loses_space(tokenizer, i, piece) for i, piece in enumerate(data)]
        self.drops_packed = np.packbits(np.array(drops), bitorder="little")
        self.grammars = Recent()
        is_text = np.array([piece is not None and piece != b"" for piece in data])
        self.is_text_packed = np.packbits(is_text, bitorder="little")
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_Wrapped(tokenizer, data, self.eos_id)),
            n_vocab=max(self.n_tokens, self.eos_id + 1),
            eos_token=self.eos_id,
        )
        self._tokenizer = weakref.ref(tokenizer)

    def drops_space(self, token_id: int) -> bool:
        """Whether the token, first in a text, loses the space it begins with."""
        return bool(self.drops_packed[token_id >> 3] >> (token_id & 7) & 1)

    def drops_space_after(self, context_ids: Sequence[int]) -> bool:
        """Whether text after these ids loses a space in front when it is decoded: nothing with text comes before."""
        tokenizer = self._tokenizer()
        if tokenizer is None or not self.drops_packed.any():
            return False
        return not any(tokenizer.decode([i, i]) for i in reversed(context_ids))


_known: "weakref.WeakKeyDictionary[Tokenizer, Vocabulary]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer, made once and kept as long as the tokenizer is."""
    with _lock:
        if tokenizer not in _known:
            _known[tokenizer] = Vocabulary(tokenizer)
        return _known[tokenizer]


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """For each id its bytes; None for a control token. A tokenizer that does not say is asked piece by piece."""
    if isinstance(tokenizer, KnowsBytes):
        return tokenizer.token_bytes()
    has_text = [bool(tokenizer.decode([i, i])) for i in range(tokenizer.vocab_size)]
    return [piece_bytes(tokenizer.piece(i), set(), set()) if has else None for i, has in enumerate(has_text)]


class _Wrapped:
    """What llguidance asks of a tokenizer. It holds the tokenizer weakly, so that both can go."""

    def __init__(self, tokenizer: Tokenizer, data: list[bytes | None], eos_id: int):
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self.tokens = [piece or b"\xff[%d]" % i for i, piece in enumerate(data)]
        self.tokens += [b"\xff[%d]" % i for i in range(len(data), eos_id + 1)]
        self.special_token_ids = [i for i, piece in enumerate(self.tokens) if piece[:2] == b"\xff["]
        self._tokenizer, self._data = weakref.ref(tokenizer), data
        self._first = {piece: i for i, piece in reversed(list(enumerate(data))) if piece}
        self._longest = max(map(len, self._first), default=1)
        self._start = next((s for s in ("", _APART) if self._encoder(s)("a") is not None), None)

    def __call__(self, text: str) -> list[int]:
        """The ids of text in the middle of a text. Bytes are refused: llguidance then asks with text only."""
        if not isinstance(text, str):
            raise TypeError("expected text")
        ids = None if self._start is None else self._encoder(self._start)(text)
        return self._greedy(text.encode()) if ids is None else ids

    def _encoder(self, start: str) -> Callable[[str], list[int] | None]:
        def encode(text: str) -> list[int] | None:
            tokenizer = self._tokenizer()
            if tokenizer is None:
                return None
            ids = tokenizer.encode(start + text)[len(tokenizer.encode(start)) if start else 0 :]
            return ids if b"".join(self._data[i] or b"" for i in ids) == text.encode() else None

        return encode

    def _greedy(self, data: bytes) -> list[int]:
        """The longest piece at each place; a byte that no piece has ends it."""
        ids, at = [], 0
        while at < len(data):
            end = min(len(data), at + self._longest)
            found = next((e for e in range(end, at, -1) if data[at:e] in self._first), None)
            if found is None:
                break
            ids.append(self._first[data[at:found]])
            at = found
        return ids


def _loses_space(tokenizer: Tokenizer, token_id: int, piece: bytes) -> bool:
    """Asked of the tokenizer, as a byte piece that is a space keeps it. Half a character after it reads as U+FFFD."""
    if piece[:1] != b" ":
        return False
    return tokenizer.decode([token_id]) == piece[1:].decode("utf-8", "replace")
