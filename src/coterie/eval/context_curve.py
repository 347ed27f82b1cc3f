"""What a longer context is worth: the same tokens scored after less and after more of the text before them.

Taking other tokens for other lengths, as the mean over a window's positions does, mixes what the context gives with
which tokens lie where. Here blocks of 64 tokens are chosen once, in texts long enough for the longest context, and each
is read again after every length; so a difference between two lengths is one of context alone, and its interval is that
of the difference. Blocks lie evenly over the texts of a domain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.eval.kept import Kept
from coterie.eval.resample import Estimate, estimate
from coterie.eval.text_score import Text
from coterie.eval.windows import Reader, ending_at

__all__ = ["Block", "Curve", "context_lengths", "curve", "join", "place_blocks"]

_SHORTEST, _MOST_LENGTHS = 128, 7
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens stop-n..stop-1 of text number `text` are scored."""

    text: int
    stop: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Nats of each block after each length (`nats[length][block]`), all blocks of `n_scored` tokens."""

    domain: str
    lengths: tuple[int, ...]
    n_scored: int
    blocks: tuple[Block, ...]
    nats: tuple[tuple[float, ...], ...]

    def perplexity(self, number: int) -> Estimate:
        """After the length of that number, with an interval over texts."""
        nats, tokens = self._by_text(self.nats[number])
        return estimate(nats, tokens, scale=np.exp)

    def gain(self, shorter: int, longer: int) -> Estimate:
        """Nats a token that the longer of two lengths saves on the same tokens."""
        nats, tokens = self._by_text([a - b for a, b in zip(self.nats[shorter], self.nats[longer], strict=True)])
        return estimate(nats, tokens)

    def _by_text(self, nats: Sequence[float]) -> tuple[list[float], list[float]]:
        """Sums over the blocks of each text; over each block where all are of one text."""
        keys = [block.text for block in self.blocks]
        if len(set(keys)) == 1:
            keys = list(range(len(keys)))
        sums, counts = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0.0)
        for key, value in zip(keys, nats, strict=True):
            sums[key] += value
            counts[key] += self.n_scored
        return list(sums.values()), list(counts.values())


def context_lengths(longest: int) -> tuple[int, ...]:
    """The longest and its halves, at most seven and none under 128 tokens, shortest first: 128, 256, ... 2048."""
    lengths = [longest]
    while len(lengths) < _MOST_LENGTHS and lengths[-1] // 2 >= _SHORTEST:
        lengths.append(lengths[-1] // 2)
    return tuple(reversed(lengths))


def place_blocks(texts: Sequence[Text], longest: int, n_scored: int, n_blocks: int) -> tuple[Block, ...]:
    """At most `n_blocks` blocks, evenly over the texts that have `longest` tokens and evenly within each.

    Example: one text of 200 tokens, longest 100, n_scored 50, two blocks: they end at 100 and at 200.
    """
    room = [max(0, (len(text.ids) - longest) // n_scored + 1) for text in texts]
    wanted = [0] * len(texts)
    open_texts = [i for i, n in enumerate(room) if n]
    while open_texts and sum(wanted) < n_blocks:
        missing = n_blocks - sum(wanted)
        step = max(1, len(open_texts) / missing)
        for i in [open_texts[int(j * step)] for j in range(min(missing, len(open_texts)))]:
            wanted[i] += 1
        open_texts = [i for i in open_texts if wanted[i] < room[i]]
    blocks = []
    for i, n in enumerate(wanted):
        stops = np.linspace(longest, len(texts[i].ids), n) if n > 1 else [(longest + len(texts[i].ids)) / 2][:n]
        blocks += [Block(i, int(stop)) for stop in stops]
    return tuple(blocks)


def curve(
    reader: Reader,
    texts: Sequence[Text],
    domain: str,
    *,
    lengths: Sequence[int],
    n_scored: int = 64,
    n_blocks: int = 32,
    prefix: int,
    progress: Progress = lambda done, total: None,
    kept: Kept | None = None,
) -> Curve | None:
    """The curve over the texts of one domain, up to the longest length that one of them has; None where none has two.

    `progress` counts tokens read. Lengths that `kept` knows are not read again.
    """
    longest_text = max(len(text.ids) for text in texts)
    lengths = tuple(length for length in lengths if length <= longest_text)
    if len(lengths) < 2:
        return None
    n_scored = min(n_scored, max(1, lengths[0] // 2))
    blocks = place_blocks(texts, lengths[-1], n_scored, n_blocks)
    total, done, rows = len(blocks) * sum(lengths), 0, list[tuple[float, ...]]()
    for length in lengths:
        windows = [
            ending_at(texts[block.text].ids, block.stop, context=length, n_scored=n_scored, prefix=prefix)
            for block in blocks
        ]
        key = [[window.ids, window.targets] for window in windows]
        nats = None if kept is None else kept.find("nats of blocks", key)
        if nats is None:
            nats = []
            for n, (window, hidden) in enumerate(reader.read(windows), 1):
                nats.append(float(reader.nats(hidden, window.targets).sum()))
                progress(done + n * length, total)
            if kept is not None:
                kept.add(nats, "nats of blocks", key)
        done += length * len(blocks)
        progress(done, total)
        rows.append(tuple(nats))
    return Curve(domain, lengths, n_scored, blocks, tuple(rows))


def join(curves: Sequence[Curve]) -> Curve:
    """The blocks of several domains as one curve; all have the same lengths and blocks as long."""
    blocks: list[Block] = []
    for found in curves:
        first = max((block.text for block in blocks), default=-1) + 1
        blocks += [Block(first + block.text, block.stop) for block in found.blocks]
    nats = tuple(tuple(x for found in curves for x in found.nats[i]) for i in range(len(curves[0].lengths)))
    return Curve("", curves[0].lengths, curves[0].n_scored, tuple(blocks), nats)
