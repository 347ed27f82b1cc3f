"""Which token wrote which part of a stream's text.

Text comes later than its tokens (half a character, a possible stop string), so tokens wait until that many characters
were let through; what a stop string swallowed is never let through.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.cli.routing_view import RoutedToken
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.api import Delta, LanguageModel, RoutingTrace

__all__ = ["RoutedStream", "choose_layer", "routed_prompt"]


class RoutedStream:
    """Feed it the deltas of a stream with routing; it returns the tokens whose text may be shown."""

    def __init__(self, lm: "LanguageModel", layer: int, context_ids: Sequence[int] = ()):
        from coterie.tokenizer import TextStream

        self._stream = TextStream(lm.tokenizer, context_ids)
        self._layer = layer
        self._waiting: deque[RoutedToken] = deque()

    def push(self, delta: "Delta") -> list[RoutedToken]:
        """The tokens, or parts of tokens, behind the delta's text."""
        if delta.routing is not None:
            self._waiting += tokens_of(delta.routing, self._layer, [self._stream.push([i]) for i in delta.token_ids])
        shown, n = [], len(delta.text)
        while self._waiting and len(self._waiting[0].text) <= n:
            token = self._waiting.popleft()
            n -= len(token.text)
            shown.append(token)
        if n and self._waiting:
            token = self._waiting.popleft()
            shown.append(RoutedToken(token.text[:n], token.experts, token.weights))
            self._waiting.appendleft(RoutedToken(token.text[n:], token.experts, token.weights))
        elif n and shown:  # the text breaks off inside a character, and its last token has to show that
            last = shown.pop()
            shown.append(RoutedToken(last.text + delta.text[-n:], last.experts, last.weights))
        return shown


def routed_prompt(lm: "LanguageModel", ids: Sequence[int], layer: int) -> list[RoutedToken]:
    """The prompt's own tokens."""
    from coterie.tokenizer import TextStream

    stream = TextStream(lm.tokenizer)
    texts = [stream.push([i]) for i in ids]
    texts[-1] += stream.finish()
    return tokens_of(lm.route(ids), layer, texts)


def tokens_of(trace: "RoutingTrace", layer: int, texts: Sequence[str]) -> list[RoutedToken]:
    """One layer of a trace beside its tokens' texts."""
    experts, weights = trace.experts[:, layer].tolist(), trace.weights[:, layer].tolist()
    return [RoutedToken(t, tuple(e), tuple(w)) for t, e, w in zip(texts, experts, weights, strict=True)]


def choose_layer(lm: "LanguageModel", name: str | None) -> int:
    """The layer to show, the middle one for None; `RequestError` for a dense model or one that is not there."""
    n = lm.config.num_hidden_layers
    if not lm.config.is_sparse:
        raise RequestError(f"{lm.name} is a dense model: it has no experts, so there is no routing to show")
    if name is None:
        return n // 2
    if not name.isascii() or not name.isdigit() or len(name) > 6 or int(name) >= n:
        raise RequestError(f"the layer to show is {name!r}, expected a number from 0 to {n - 1}")
    return int(name)
