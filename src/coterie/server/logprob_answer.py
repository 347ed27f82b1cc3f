"""Log-probabilities as OpenAI writes them: of the raw logits, with the bytes of each token.

Mistral's client drops all of them where one has no `token_id`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from coterie.server.tokens import Token, Vocabulary

__all__ = ["chat_logprobs", "text_logprobs"]

_LEAST = -9999.0  # JSON has no infinity: what could not be chosen


def chat_logprobs(tokens: Iterable[Token], words: Vocabulary) -> dict[str, Any]:
    """`{"content": [{token, logprob, bytes, top_logprobs}]}`: the tokens' texts add up to the content."""
    return {"content": [_entry(t, words) for t in tokens if t.is_shown and t.logprob is not None], "refusal": None}


def text_logprobs(tokens: Sequence[Token], words: Vocabulary, offset: int, n_top: int) -> dict[str, Any]:
    """The older form of /v1/completions; `offset` is where the first token's text begins."""
    shown = [t for t in tokens if t.is_shown and t.logprob is not None]
    offsets = []
    for t in shown:
        offsets.append(offset)
        offset += len(t.text)
    tops = [{words.label(i, is_first=t.is_first): _number(v) for i, v in _top(t)} for t in shown]
    return {
        "tokens": [t.text for t in shown],
        "token_logprobs": [_number(t.logprob.logprob) for t in shown if t.logprob is not None],
        "top_logprobs": tops if n_top else None,
        "text_offset": offsets,
    }


def _entry(token: Token, words: Vocabulary) -> dict[str, Any]:
    assert token.logprob is not None
    return {
        "token": token.text,
        "logprob": _number(token.logprob.logprob),
        "bytes": list(token.raw),
        "token_id": token.id,
        "top_logprobs": [_alternative(token, i, v, words) for i, v in _top(token)],
    }


def _alternative(token: Token, token_id: int, value: float, words: Vocabulary) -> dict[str, Any]:
    if token_id == token.id:
        label, raw = token.text, token.raw
    else:
        label, raw = words.label(token_id, is_first=token.is_first), words.raw(token_id)
        raw = raw[1:] if token.is_first and raw.startswith(b" ") else raw
    return {"token": label, "logprob": _number(value), "bytes": list(raw), "token_id": token_id}


def _top(token: Token) -> tuple[tuple[int, float], ...]:
    return () if token.logprob is None else token.logprob.top


def _number(value: float) -> float:
    return max(value, _LEAST)
