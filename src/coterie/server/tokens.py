"""What each token adds to a text: characters, bytes, log-probabilities, routing, in step with the text that is shown.

The engine holds text back (half a character, what may become a stop string), so a token is released when its text is;
then the texts of the tokens shown add up to the content, to the character, at every moment. A character of several
tokens is the last one's text, and the others are released with it. A token of a stop string that was cut off has no
text left, and none of its log-probabilities are shown.
"""

import asyncio
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event
from coterie.tokenizer import Tokenizer
from coterie.tokenizer.protocol import KnowsBytes

__all__ = ["Token", "TokenReader", "Vocabulary", "load_vocabulary", "vocabulary"]


@dataclass(slots=True)
class Token:
    """`text` is what the token added, `raw` its bytes: of half a character one of them, while `text` is still empty."""

    id: int
    text: str
    raw: bytes
    is_first: bool  # of an answer that begins anew: its leading space is dropped
    is_shown: bool = True  # has a place in the content; the token that ended the text has none
    logprob: TokenLogprob | None = None
    routing: tuple[Tensor, Tensor] | None = None


class Vocabulary:
    """The bytes of every token, and how one is written when it was not chosen."""

    def __init__(self, tokenizer: Tokenizer):
        ids = range(tokenizer.vocab_size)
        known = tokenizer.token_bytes() if isinstance(tokenizer, KnowsBytes) else [None] * len(ids)
        self._bytes = [
            tokenizer.decode([i]).encode() if raw is None else raw for i, raw in zip(ids, known, strict=True)
        ]
        self._names = {i: tokenizer.piece(i) for i, raw in enumerate(self._bytes) if not raw}

    def raw(self, token_id: int) -> bytes:
        """Its bytes; none for a control token, and for an id that a model has and its tokenizer has not."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def label(self, token_id: int, *, is_first: bool) -> str:
        """Its text as an alternative: a control token by its name, half a character as U+FFFD."""
        text = self.raw(token_id).decode("utf-8", errors="replace")
        if is_first and text.startswith(" "):
            text = text[1:]
        return text or self._names.get(token_id, "")


_known: "WeakKeyDictionary[Tokenizer, Vocabulary]" = WeakKeyDictionary()


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Made once for each tokenizer, when first asked for."""
    if tokenizer not in _known:
        _known[tokenizer] = Vocabulary(tokenizer)
    return _known[tokenizer]


async def load_vocabulary(tokenizer: Tokenizer) -> None:
    """Make it in a thread, if it is not there yet: for 131,072 tokens it takes a tenth of a second."""
    if tokenizer not in _known:
        await asyncio.to_thread(vocabulary, tokenizer)


class TokenReader:
    """The tokens of one sample: `take` each event, then release as much as the content has room for."""

    def __init__(self, tokenizer: Tokenizer, context_ids: tuple[int, ...]):
        self._words = vocabulary(tokenizer)
        self._begins_anew = not context_ids
        self._held: list[Token] = []
        self._room = 0  # characters of content that no released token has

    def take(self, event: Event) -> None:
        """One event, whose text is shown now."""
        self._room += len(event.text)
        if event.token_id is None:
            return
        text, raw = event.own_text, self._words.raw(event.token_id)
        is_first = self._begins_anew
        self._begins_anew = is_first and not (raw or text)
        is_shown = bool(text or (raw and event.finish_reason != "stop"))  # what ended the text has no place in it
        if is_first and raw.startswith(b" ") and not text.startswith(" "):
            raw = raw[1:]  # the space that SentencePiece puts in front is not in the text
        self._held.append(Token(event.token_id, text, raw, is_first, is_shown, event.logprob, event.routing))

    def release(self) -> list[Token]:
        """The tokens whose text has been shown whole."""
        n, room = 0, self._room
        for place, token in enumerate(self._held, 1):
            room -= len(token.text)
            if room < 0:
                break
            if token.text:
                n, self._room = place, room
        free, self._held = self._held[:n], self._held[n:]
        return free

    def finish(self) -> list[Token]:
        """All that is left when the text is complete: cut where the text was cut."""
        free = self.release()
        is_cut = any(token.text for token in self._held)  # else all that is left never has text
        for token in self._held if is_cut else ():
            kept = token.text[: self._room]
            if kept or not self._room:
                token.text, token.raw, token.is_shown = kept, kept.encode(), bool(kept)
                self._room -= len(kept)
        free += self._held
        self._held = []
        return free
