"""How many bits a model needs for a byte of texts, and its perplexity, over all of them and by domain.

Every token of every text is scored once, in the overlapping windows of `windows.py`. Bits per byte compare across
vocabularies; perplexity is per token and does not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.errors import DataError
from coterie.eval.resample import Estimate, estimate
from coterie.eval.windows import Reader, Seen, cut
from coterie.tokenizer import Tokenizer

__all__ = ["Text", "TextScore", "bits_per_byte", "by_domain", "encode", "perplexity", "score_texts"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Text:
    """One document, encoded; its windows begin anew."""

    domain: str
    ids: tuple[int, ...]
    n_bytes: int


@dataclass(slots=True)
class TextScore:
    """What one text took: `nats[i]` over `tokens[i]` tokens of its window i."""

    domain: str
    n_bytes: int
    nats: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def encode(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], where: str) -> list[Text]:
    """From (domain, text) pairs; empty texts are left out, and where nothing else is there it is a `DataError`."""
    found = [Text(domain, tuple(tokenizer.encode(text)), len(text.encode())) for domain, text in texts if text]
    found = [text for text in found if text.ids]
    if not found:
        raise DataError(f"{where} has no text to score: expected at least one that is not empty")
    return found


def score_texts(
    reader: Reader,
    texts: Sequence[Text],
    *,
    context: int,
    stride: int,
    prefix: int,
    progress: Progress = lambda done, total: None,
    seen: Callable[[Text], Seen | None] = lambda text: None,
) -> list[TextScore]:
    """One score a text; `progress` counts texts' tokens. `seen(text)` is what looks at the routing of its windows."""
    total, done, scores = sum(len(text.ids) for text in texts), 0, list[TextScore]()
    for text in texts:
        score = TextScore(text.domain, text.n_bytes)
        for window, hidden in reader.read(cut(text.ids, context=context, stride=stride, prefix=prefix), seen(text)):
            score.nats.append(float(reader.nats(hidden, window.targets).sum()))
            score.tokens.append(len(window.targets))
            done += len(window.targets)
            progress(done, total)
        scores.append(score)
    return scores


def by_domain(scores: Sequence[TextScore]) -> dict[str, list[TextScore]]:
    """The scores of each domain, in the order in which the domains come."""
    groups: dict[str, list[TextScore]] = {}
    for score in scores:
        groups.setdefault(score.domain, []).append(score)
    return groups


def bits_per_byte(scores: Sequence[TextScore]) -> Estimate:
    """With an interval over texts; over its windows where there is one text only."""
    if len(scores) == 1:
        per_token = scores[0].n_bytes / sum(scores[0].tokens)
        bytes_n = [n * per_token for n in scores[0].tokens]
        return estimate([nats / math.log(2) for nats in scores[0].nats], bytes_n)
    return estimate([sum(s.nats) / math.log(2) for s in scores], [float(s.n_bytes) for s in scores])


def perplexity(scores: Sequence[TextScore]) -> Estimate:
    """exp of the nats of a token, with an interval as `bits_per_byte` has it."""
    if len(scores) == 1:
        return estimate(scores[0].nats, [float(n) for n in scores[0].tokens], scale=np.exp)
    return estimate([sum(s.nats) for s in scores], [float(sum(s.tokens)) for s in scores], scale=np.exp)
