"""How many bits a model needs for a byte of texts, and its perplexity, over all of them and by domain.

Every token of every text is scored once, in the overlapping windows of `windows.py`. Bits per byte compare across
vocabularies; perplexity is per token and does not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.errors import DataError
from coterie.eval.kept import Kept
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
    seen: Seen | None = None,
    kept: Kept | None = None,
) -> list[TextScore]:
    """One score a text; `progress` counts tokens. What `kept` knows is not read again, unless routing is to be `seen`:
    that gets each text's windows, their `text` a place in `texts`.
    """
    scores = [TextScore(text.domain, text.n_bytes) for text in texts]
    missing = [
        i for i in range(len(texts)) if seen is not None or not _recall(kept, scores[i], texts[i], context, stride)
    ]
    total = sum(len(text.ids) for text in texts)
    done = total - sum(len(texts[i].ids) for i in missing)
    windows = (w for i in missing for w in cut(texts[i].ids, context=context, stride=stride, prefix=prefix, text=i))
    for window, hidden in reader.read(windows, seen):
        text, score = texts[window.text], scores[window.text]
        score.nats.append(float(reader.nats(hidden, window.targets).sum()))
        score.tokens.append(len(window.targets))
        if kept is not None and window.first + len(window.targets) == len(text.ids):
            kept.add([score.nats, score.tokens], text.ids, context, stride)
        done += len(window.targets)
        progress(done, total)
    return scores


def _recall(kept: Kept | None, score: TextScore, text: Text, context: int, stride: int) -> bool:
    """Whether the score of a text is known from an interrupted run; it is filled in then."""
    known = None if kept is None else kept.find(text.ids, context, stride)
    if known is not None:
        score.nats, score.tokens = known
    return known is not None


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
