"""Does an expert's share depend on the place in the text? Places in powers of two: 0, 1, 2-3, 4-7, 8-15 and so on.

The distance of each place from all text is the share of slots that would have to move. Beside it stands what blocks of
text would give by chance: the mean distance when each block's places are another block's (the halves of the text
compared with each other, scaled to the size of the place). Place 0 is BOS where there is one, always the same token.
Shapes: T tokens of a chunk, L layers, E experts, P places, B blocks.
"""

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import percent
from coterie.analysis.intervals import distance
from coterie.analysis.scan import Chunk, count
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["N_PLACES", "PositionsReader", "place_name", "place_of"]

N_PLACES, _FEW = 24, 32


def place_of(positions_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 for 0, 1 for 1, 2 for 2-3, 3 for 4-7; 23 for all beyond."""
    return np.minimum(np.frexp(positions_T.astype(np.float64))[1].astype(np.int64), N_PLACES - 1)


def place_name(place: int) -> str:
    """`4-7` for 3."""
    if place < 2:
        return str(place)
    return f"{1 << place - 1}-{(1 << place) - 1}" if place < N_PLACES - 1 else f"{1 << place - 1} and beyond"


class PositionsReader:
    """Counts experts by place, the halves of the text apart."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace = trace
        self.counts_LRE = np.zeros((trace.n_layers, 2 * N_PLACES, trace.n_experts), dtype=np.int64)
        self.tokens_P = np.zeros(N_PLACES, dtype=np.int64)

    def add(self, chunk: Chunk) -> None:
        place_T = place_of(chunk.positions_T)
        self.tokens_P += np.bincount(place_T, minlength=N_PLACES)
        for ids_LT in chunk.ids_KLT:
            self.counts_LRE += count(place_T * 2 + chunk.half_T, ids_LT, 2 * N_PLACES, self.trace.n_experts)

    def sections(self) -> list[Section]:
        places = [p for p in range(N_PLACES) if self.tokens_P[p] >= _FEW]
        if not places:
            return []
        halves = self.counts_LRE.reshape(self.trace.n_layers, N_PLACES, 2, -1)
        found_LP, chance_LP = distance(_shares(halves.sum(2)), _shares(halves.sum((1, 2)))[:, None]), _by_chance(halves)
        found, chance = found_LP.mean(0), chance_LP.mean(0)
        rows = tuple(self._row(p, halves[:, p].sum(1), found_LP[:, p], chance[p]) for p in places)
        names = [place_name(p) for p in places]
        series = {"distance from all text": percent(found[places]), "between halves": percent(chance[places])}
        plots = (Plot("bars", "How much the place in the text changes who reads", "place", "%", names, series),)
        facts = {
            "places": names, "tokens": self.tokens_P[places].tolist(), "moved": np.round(found[places], 5).tolist(),
            "between_halves": np.round(chance[places], 5).tolist(),
            "by_layer": np.round(found_LP[:, places], 5).tolist(),
        }  # fmt: skip
        sentence = _say(places, found, chance)
        section = Section("positions", "The place in the text", sentence, _COLUMNS, rows, plots, _NOTE, facts)
        return [section]

    def _row(
        self, p: int, counts_LE: NDArray[np.int64], found_L: NDArray[np.float64], chance: float
    ) -> tuple[Cell, ...]:
        layer = int(found_L.argmax())
        share_E = _shares(counts_LE[layer])
        most = int(share_E.argmax())
        moved = percent(found_L.mean()), percent(chance)
        return (
            place_name(p), int(self.tokens_P[p]), *moved, layer, percent(found_L[layer]), most, percent(share_E[most])
        )  # fmt: skip


_COLUMNS = (
    "place", "tokens", "moved %", "between halves %", "most in layer", "there %", "its busiest expert", "reads %",
)  # fmt: skip
_NOTE = (
    "'moved': total variation distance of the experts' shares at a place from those of all text, mean of the layers; "
    "'between halves': that of the two halves of the text from each other at that place, halved, which is about what "
    f"chance alone gives. Places with fewer than {_FEW} tokens are left out."
)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def _by_chance(halves_LP2E: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distance between halves of n/2 tokens each has a standard error of 2σ/√n, that of all n tokens σ/√n."""
    shares = _shares(halves_LP2E)
    return distance(shares[:, :, 0], shares[:, :, 1]) / 2


def _say(places: list[int], found: NDArray[np.float64], chance: NDArray[np.float64]) -> str:
    later = [p for p in places if p >= 4]
    start = places[0]
    begin = f"At place {place_name(start)} {found[start]:.1%} of the slots go to other experts than in all text"
    if not later:
        return f"{begin} ({chance[start]:.1%} between the halves of the text)."
    far = max(later, key=lambda p: found[p])
    verb = "still matters" if found[far] > max(2 * chance[far], 0.02) else "hardly matters any more"
    return (
        f"{begin}; from place 8 on the place {verb}: at most {found[far]:.1%}, at {place_name(far)} "
        f"({chance[far]:.1%} between the halves of the text)."
    )
