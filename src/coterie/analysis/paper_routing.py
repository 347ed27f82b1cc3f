"""What the Mixtral paper reports about routing (arXiv 2401.04088, section 5 and table 5), to print beside our own.

Mixtral 8x7B: 8 experts, top 2, 32 layers, of which three are shown; text of the validation set of The Pile. Per cent of
consecutive tokens that have the same first choice, and that have their first or second choice in common.
"""

from typing import NamedTuple

__all__ = ["PAPER_LAYERS", "PAPER_N_LAYERS", "PAPER_SHAPE", "TABLE_5", "PaperRepeats", "paper_means"]

PAPER_LAYERS, PAPER_N_LAYERS, PAPER_SHAPE = (0, 15, 31), 32, (8, 2)  # shape: experts, and how many read a token


class PaperRepeats(NamedTuple):
    """Per cent at layers 0, 15 and 31."""

    first: tuple[float, float, float]
    either: tuple[float, float, float]


TABLE_5 = {
    "ArXiv": PaperRepeats((14.0, 27.9, 22.7), (46.5, 62.3, 52.9)),
    "DM Mathematics": PaperRepeats((14.1, 28.4, 19.7), (44.9, 67.0, 44.5)),
    "GitHub": PaperRepeats((14.9, 28.1, 19.7), (49.9, 66.9, 49.2)),
    "Gutenberg": PaperRepeats((13.9, 26.1, 26.3), (49.5, 63.1, 52.2)),
    "PhilPapers": PaperRepeats((13.6, 25.3, 22.1), (46.9, 61.9, 51.3)),
    "PubMed abstracts": PaperRepeats((14.2, 24.6, 22.0), (48.6, 61.6, 51.8)),
    "StackExchange": PaperRepeats((13.6, 27.2, 23.6), (48.2, 64.6, 53.6)),
    "Wikipedia": PaperRepeats((14.4, 23.6, 25.3), (49.8, 62.1, 51.8)),
}


def paper_means() -> PaperRepeats:
    """The mean of the eight domains, by layer."""

    def mean(columns: list[tuple[float, float, float]]) -> tuple[float, float, float]:
        a, b, c = (sum(column) / len(columns) for column in zip(*columns, strict=True))
        return a, b, c

    return PaperRepeats(mean([row.first for row in TABLE_5.values()]), mean([row.either for row in TABLE_5.values()]))
