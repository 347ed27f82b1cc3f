"""Ids to text as they come: never half a character, and in sum exactly what decoding at once gives.

Decoding one id alone would lose the space before a word (`▁une` alone decodes to `une`) and break characters that
span byte pieces (`<0xC3>` `<0xA9>` is `é`). So a short window of the last ids is decoded again at each push, and a
tail of U+FFFD, which the next byte may still complete, is held back. Worked example, after `<0xC3>`: the window
decodes to `�`, held; after `<0xA9>` it decodes to `é`, given out.
"""

from collections.abc import Sequence

from coterie.tokenizer.protocol import Tokenizer

__all__ = ["TextStream"]

_KEEP = 8  # ids that stay in the window: enough to fall in step again when the cut splits a character
_LARGEST = 24  # the window is cut back to _KEEP when it grows past this, so a push costs the same however long the text
_UNFINISHED = 3  # an incomplete character of 4 bytes reads as at most this many U+FFFD
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Newly final text at each `push`, the rest at `finish`.

    Together they equal `decode(ids)`, or `decode(context_ids + ids)` without the text of the context, so a prompt's
    continuation keeps its leading space. Works on any `Tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._silent: dict[int, bool] = {}
        self._window: list[int] = []
        self._text = ""  # the window decoded
        self._given = 0  # how many characters of it were handed out, or belong to the context
        self._context_end = ""  # the context's last characters while the next id may still change them
        self._begin(context_ids)

    def push(self, ids: Sequence[int]) -> str:
        """The text that became final with `ids`; often empty inside a character of several byte tokens."""
        parts = []
        for start in range(0, len(ids), _KEEP):
            self._add(ids[start : start + _KEEP])
            parts.append(self._give(len(self._text) - self._n_held()))
            self._shorten()
        return "".join(parts)

    def finish(self) -> str:
        """What was held back: the bytes of an incomplete character as U+FFFD."""
        return self._give(len(self._text))

    def _begin(self, context_ids: Sequence[int]) -> None:
        """Fill the window with the end of the context: as much of it as has any text."""
        n = _KEEP
        while context_ids:
            self._window = []
            self._add(context_ids[-n:])
            if self._text or n >= len(context_ids):
                break
            n *= 2
        self._given = len(self._text) - self._n_held()
        self._context_end = self._text[self._given :]

    def _add(self, ids: Sequence[int]) -> None:
        """Extend the window; of control tokens in a row one is enough (it ends a run of byte pieces).

        Ids beyond the vocabulary, which a padded model may write, are no tokens: decoding leaves them out.
        """
        for i in ids:
            if i >= self._tokenizer.vocab_size:
                continue
            if self._is_silent(i) and (not self._window or self._is_silent(self._window[-1])):
                continue
            self._window.append(i)
        self._text = self._tokenizer.decode(self._window)

    def _is_silent(self, token_id: int) -> bool:
        """Whether the id never has text. Asked twice over, since a first `▁` alone decodes to nothing, a second not."""
        if token_id not in self._silent:
            self._silent[token_id] = not self._tokenizer.decode([token_id, token_id])
        return self._silent[token_id]

    def _n_held(self) -> int:
        return min(len(self._text) - len(self._text.rstrip(_BROKEN)), _UNFINISHED)

    def _give(self, end: int) -> str:
        text = self._text[self._given : end]
        self._given = max(self._given, end)
        if not text or not self._context_end:
            return text
        own = _common_start(text, self._context_end)  # shown with the context already
        self._context_end = self._context_end[len(own) :] if own == text else ""
        return text[len(own) :]

    def _shorten(self) -> None:
        """Forget the window's beginning. What is held back reads the same after it: decoding UTF-8 falls in step."""
        if len(self._window) <= _LARGEST:
            return
        window = self._window[-_KEEP:]
        text = self._tokenizer.decode(window)
        if text:  # without text the next piece would lose its space as if it were the first
            self._given += len(text) - len(self._text)
            self._window, self._text = window, text


def _common_start(a: str, b: str) -> str:
    n = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]
