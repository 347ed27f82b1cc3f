"""What was found by length and depth: a table, heat maps, and whether the middle is harder than the ends."""

import math
from collections.abc import Sequence

from coterie.analysis.section import Cell, Plot, Section
from coterie.eval.task import Judged

__all__ = ["grid_sections", "middle_sentence"]

_KINDS = (("exact", "Exact answers"), ("ranked", "Likeliest of the candidates"))


def grid_sections(name: str, judged: Sequence[Judged]) -> list[Section]:
    """One section for exact answers and one for ranks, each with depths down and lengths across."""
    lengths = sorted({item.row["length"] for item, _ in judged})
    depths = sorted({item.row["depth"] for item, _ in judged})
    cells: dict[tuple[int, int], list[Judged]] = {}
    for item, numbers in judged:
        cells.setdefault((item.row["depth"], item.row["length"]), []).append((item, numbers))
    return [_section(name, metric, title, lengths, depths, cells, judged) for metric, title in _KINDS]


def _section(
    name: str,
    metric: str,
    title: str,
    lengths: list[int],
    depths: list[int],
    cells: dict[tuple[int, int], list[Judged]],
    judged: Sequence[Judged],
) -> Section:
    def share(depth: int, length: int) -> float:
        return _mean([numbers[metric] for _, numbers in cells.get((depth, length), [])])

    grid = {f"{depth} % deep": [share(depth, length) for length in lengths] for depth in depths}
    rows: list[tuple[Cell, ...]] = [(depth, *values) for depth, values in grid.items()]
    guess = _mean([item.row["guess"] if metric == "exact" else 1 / item.row["candidates"] for item, _ in judged])
    found = _mean([numbers[metric] for _, numbers in judged])
    plot = Plot(
        "heatmap", f"{name}: {title.lower()}", "tokens of prompt", "share of prompts", [str(n) for n in lengths], grid
    )
    return Section(
        f"{name}-{metric}",
        f"{name}: {title.lower()}",
        f"{title}: {found:.1%} of {len(judged)} prompts of up to {lengths[-1]} tokens (chance {_chance(guess)}); "
        f"{middle_sentence(judged, metric)}.",
        ("depth", *(str(n) for n in lengths)),
        tuple(rows),
        (plot,),
        "depth: how much of the text lies before what is asked for; a share of the prompts of that length and depth",
        {"lengths": lengths, "depths": depths, "share": found, "chance": guess},
    )


def middle_sentence(judged: Sequence[Judged], metric: str) -> str:
    """Whether depths from a quarter to three quarters are harder than both ends, beyond twice the standard error."""
    ends = [numbers[metric] for item, numbers in judged if item.row["depth"] in (0, 100)]
    middle = [numbers[metric] for item, numbers in judged if 25 <= item.row["depth"] <= 75]
    if len(ends) < 2 or len(middle) < 2:
        return "too few depths to compare the middle with the ends"
    gap, error = _mean(ends) - _mean(middle), math.hypot(_error(ends), _error(middle))
    shares = f"{_mean(ends):.1%} at the ends, {_mean(middle):.1%} from 25 to 75 % deep"
    if abs(gap) <= 1.96 * error or gap == 0:
        return f"{shares}, no difference that so many prompts could show"
    return f"{shares}, so the middle is {'harder' if gap > 0 else 'easier'}"


def _chance(guess: float) -> str:
    return f"{guess:.1%}" if guess >= 0.001 else f"{guess:.2g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _error(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
