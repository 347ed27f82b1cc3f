"""How well the experts of a layer can be told before its turn, so that they could be on their way into memory.

Four guesses of as many experts as a token uses, and the share of its experts that are among them (recall):

    this layer's input   what the layer's own router makes of the input of the layer before (recorded with `--guess`;
                         Eliseev and Mazur, arXiv 2312.17238, fetch experts by it)
    previous token       what the token before used in the same layer
    most frequent        what the layer uses most, over the sample
    at random            K of E

Shapes: T tokens, L layers, K experts per token, E experts, G groups (domains).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.section import Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["Recalls", "measure_recalls", "prefetch_section"]

_CHUNK = 16_384  # tokens at a time
_NAMES = {"guess": "input of the layer before", "previous": "previous token", "frequent": "most frequent"}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ids = NDArray[np.int16]


class Recalls:
    """`hits` and `asked` by way of guessing, each [L, G]; a way that guesses nothing for a token is not asked.

    `n_guesses`: of the most frequent, and at random.
    """

    def __init__(self, n_layers: int, n_groups: int, ways: Sequence[str], n_guesses: int) -> None:
        self.n_guesses = n_guesses
        self.hits: dict[str, Floats] = {way: np.zeros((n_layers, n_groups)) for way in ways}
        self.asked: dict[str, Floats] = {way: np.zeros((n_layers, n_groups)) for way in ways}

    def add(self, way: str, layer: int, real_TK: Ids, guess_TK: Ids, group_T: Ints) -> None:
        """Unused slots (-1) of the real experts do not count, nor tokens whose guess is all -1."""
        is_asked_TK = (real_TK >= 0) & (guess_TK >= 0).any(-1, keepdims=True)
        is_hit_TK = is_asked_TK & (real_TK[:, :, None] == guess_TK[:, None, :]).any(-1)
        n = self.hits[way].shape[1]
        self.hits[way][layer] += np.bincount(group_T, weights=is_hit_TK.sum(-1), minlength=n)
        self.asked[way][layer] += np.bincount(group_T, weights=is_asked_TK.sum(-1), minlength=n)

    def of(self, way: str, layer: int | None = None, group: int | None = None) -> float | None:
        """Recall over a layer, a group, both or all; None where nothing was guessed."""
        rows, columns = slice(None) if layer is None else layer, slice(None) if group is None else group
        asked = float(self.asked[way][rows, columns].sum())
        return float(self.hits[way][rows, columns].sum()) / asked if asked else None


def measure_recalls(trace: Trace, n_tokens: int, progress: Callable[[int, int], None] | None = None) -> Recalls:
    """On `n_tokens` in pieces spread evenly over the trace. The token before does not reach over a document's start."""
    pieces = _pieces(len(trace), n_tokens)
    has_guesses = trace.guesses(0, 1) is not None
    frequent = _most_frequent(trace, pieces)
    ways = [way for way in _NAMES if way != "guess" or has_guesses]
    recalls = Recalls(trace.n_layers, len(trace.domains), ways, frequent.shape[1])
    domain_T, documents_T = np.asarray(trace.domain_of_T), np.asarray(trace.documents)
    for n, (start, stop) in enumerate(pieces):
        real, before = _with_the_one_before(trace, documents_T, start, stop)
        group = domain_T[start:stop].astype(np.int64)
        guesses = trace.guesses(start, stop)
        for layer in range(trace.n_layers):
            recalls.add("previous", layer, real[:, layer], before[:, layer], group)
            same = np.broadcast_to(frequent[layer], (stop - start, frequent.shape[1]))
            recalls.add("frequent", layer, real[:, layer], same, group)
            if guesses is not None:
                recalls.add("guess", layer, real[:, layer], guesses[:, layer], group)
        if progress:
            progress(n + 1, len(pieces))
    return recalls


def _with_the_one_before(trace: Trace, documents_T: NDArray[np.int32], start: int, stop: int) -> tuple[Ids, Ids]:
    """The experts of each token, and those of the token before it: -1 for the first of a document."""
    first = max(start - 1, 0)
    longer = trace.experts(first, stop)
    before = np.full((stop - start, *longer.shape[1:]), -1, dtype=longer.dtype)
    follows = documents_T[first + 1 : stop] == documents_T[first : stop - 1]
    before[len(before) - len(follows) :] = np.where(follows[:, None, None], longer[:-1], -1)
    return longer[start - first :], before


def _pieces(n_all: int, n_tokens: int) -> list[tuple[int, int]]:
    """Ten pieces or more, each in its tenth of the trace; all of it where it is not longer than what is wanted."""
    n_tokens = min(n_tokens, n_all)
    n = min(max(10, -(-n_tokens // _CHUNK)), n_all)
    starts = [n_all * i // n for i in range(n + 1)]
    return [(a, min(a + -(-n_tokens // n), b)) for a, b in pairwise(starts)]


def _most_frequent(trace: Trace, pieces: Sequence[tuple[int, int]]) -> Ids:
    """[L, K], of the same pieces that it is tried on: with thousands of tokens a choice of so few flatters nobody.

    K is what a token uses on average, rounded up: fewer than there are slots where some are unused.
    """
    counts = np.zeros((trace.n_layers, trace.n_experts), dtype=np.int64)
    for start, stop in pieces:
        real = trace.experts(start, stop)
        for layer in range(trace.n_layers):
            ids = real[:, layer].ravel()
            counts[layer] += np.bincount(ids[ids >= 0], minlength=trace.n_experts)
    n_places = trace.n_layers * sum(stop - start for start, stop in pieces)
    n_guesses = max(-(-int(counts.sum()) // n_places), 1)
    return np.argsort(-counts, axis=1, kind="stable")[:, :n_guesses].astype(np.int16)


def prefetch_section(trace: Trace, recalls: Recalls) -> Section:
    """By layer and by domain, beside what chance gives."""
    chance = recalls.n_guesses / trace.n_experts
    ways = list(recalls.hits)
    rows = [(f"layer {n}", *(recalls.of(way, layer=n) for way in ways), chance) for n in range(trace.n_layers)]
    rows += [(name, *(recalls.of(way, group=g) for way in ways), chance) for g, name in enumerate(trace.domains)]
    rows.append(("all", *(recalls.of(way) for way in ways), chance))
    series = {_NAMES[way]: [_number(recalls.of(way, layer=n)) for n in range(trace.n_layers)] for way in ways}
    plot = Plot(
        "lines", "Experts of a layer that were guessed before its turn", "layer", "recall",
        [float(n) for n in range(trace.n_layers)], series, references={"at random": chance},
    )  # fmt: skip
    return Section(
        "prefetch", "Can the next layer's experts be guessed?", _sentence(trace, recalls, chance),
        ("", *(_NAMES[way] for way in ways), "at random"), tuple(rows), (plot,),
        note="Recall: the share of a token's experts that are among as many guesses. The guess of layer l is what its "
        "router makes of the input of layer l - 1; the first layer has none (arXiv 2312.17238).",
        facts={"chance": chance, "recall": {way: recalls.of(way) for way in ways}},
    )  # fmt: skip


def _sentence(trace: Trace, recalls: Recalls, chance: float) -> str:
    shown = {way: recalls.of(way) for way in recalls.hits}
    others = (
        f"the previous token's experts find {_percent(shown['previous'])}, the most frequent ones "
        f"{_percent(shown['frequent'])}, chance {chance:.1%}"
    )
    if shown.get("guess") is None:
        return f"Of the experts of a layer {others}; record with --guess to know what the layer before can tell."
    return (
        f"The router of a layer, shown the input of the layer before, names {_percent(shown['guess'])} of its experts; "
        f"{others}."
    )


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{share:.1%}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
