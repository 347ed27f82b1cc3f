"""What a finding is and what to draw of it, with no library in sight: the terminal, the page and `--json` read these.

A `Section` is one question about a trace, answered in a sentence with its figure in it, a table, plots, and `facts`:
the numbers under names, for scripts. Numbers in rows stay numbers; `shown` alone rounds them, for people.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Cell", "Plot", "Section", "plain", "plot_file", "shown"]

Cell = str | int | float | None


@dataclass(frozen=True)
class Plot:
    """Lines or bars: `series` maps a name to its value at each of `x`; a heatmap: a row's name to its values.

    `low` and `high` are the ends of intervals, by the same names; `references` are horizontal lines with a label (the
    fair share, chance), `baselines` the names of lines that the others are measured by. NaN is "nothing here". A list
    whose length is not that of `x` is a bug of ours.
    """

    kind: Literal["lines", "bars", "heatmap"]
    title: str
    x_label: str
    y_label: str
    x: list[str] | list[float]
    series: dict[str, list[float]]
    low: dict[str, list[float]] | None = None
    high: dict[str, list[float]] | None = None
    references: dict[str, float] = field(default_factory=dict)
    baselines: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for group in (self.series, self.low or {}, self.high or {}):
            for name, values in group.items():
                assert len(values) == len(self.x), (
                    f"{self.title}: {name} has {len(values)} values at {len(self.x)} points"
                )
                assert name in self.series, f"{self.title}: an interval of {name}, which is not drawn"


@dataclass(frozen=True)
class Section:
    """One finding. `key` names it in `--json` and in file names: lower case letters, digits and hyphens."""

    key: str
    title: str
    sentence: str  # what it shows, in one or two plain sentences with the figure in it
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    plots: tuple[Plot, ...] = ()
    note: str = ""  # the method, in a sentence (the source of a formula)
    facts: dict[str, Any] = field(default_factory=dict)  # numbers for `--json` and for the documentation

    def __post_init__(self) -> None:
        assert self.key and set(self.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"), (
            f"a section's key: {self.key!r}"
        )
        assert all(len(row) == len(self.columns) for row in self.rows), (
            f"{self.key}: a row is not as long as the columns"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything but the drawing, as plain values: NaN and infinity become None, numpy's numbers Python's."""
        return {
            "key": self.key,
            "title": self.title,
            "sentence": self.sentence,
            "columns": list(self.columns),
            "rows": [[plain(cell) for cell in row] for row in self.rows],
            "plots": [plot_file(self, n) for n in range(len(self.plots))],
            "note": self.note,
            "facts": plain(self.facts),
        }


def plot_file(section: Section, number: int) -> str:
    """The name of a plot's files, without an ending: the first has the section's key, the others a number after it."""
    return section.key if number == 0 else f"{section.key}-{number + 1}"


def plain(value: Any) -> Any:
    """`value` as JSON has it: tuples and arrays are lists, keys are strings, a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(cell: Cell) -> str:
    """A cell for people: integers with commas, other numbers with four figures at most, nothing as a dash."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
