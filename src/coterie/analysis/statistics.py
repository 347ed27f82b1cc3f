"""All that a trace says about its model's routing, in one walk through it.

One million tokens of six layers take a few seconds; memory is that of one chunk and of the counts.
"""

import numpy as np

from coterie.analysis.blocks import blocks_of
from coterie.analysis.coactivation import CoactivationReader
from coterie.analysis.confidence import ConfidenceReader
from coterie.analysis.factors import FactorsReader
from coterie.analysis.positions import PositionsReader
from coterie.analysis.repeats import RepeatsReader
from coterie.analysis.scan import Progress, Reader, read_through
from coterie.analysis.section import Section
from coterie.analysis.shares import ShareReader, n_choices
from coterie.analysis.trace import Trace
from coterie.analysis.vocabulary import VocabularyReader
from coterie.errors import DataError

__all__ = ["READERS", "all_sections"]

READERS = (
    ShareReader, RepeatsReader, FactorsReader, VocabularyReader, PositionsReader, CoactivationReader, ConfidenceReader,
)  # fmt: skip
_COUNTS = 6_000_000  # of blocks, layers, choices and experts together


def all_sections(trace: Trace, progress: Progress | None = None) -> list[Section]:
    """Shares, choices, domains, repeats, factors, tokens, kinds, positions, co-activation, confidence, in this order.

    `progress` is called with tokens done and in all. `DataError` where the trace has no tokens.
    """
    if len(trace) == 0:
        raise DataError("the trace has no tokens, so there is nothing to report; record one of a text that has some")
    cells = trace.n_layers * trace.n_experts * n_choices(trace)
    blocks = blocks_of(trace, most=int(np.clip(_COUNTS // max(cells, 1), 100, 2000)))
    readers: list[Reader] = [make(trace, blocks) for make in READERS]
    return read_through(trace, blocks, readers, progress)
