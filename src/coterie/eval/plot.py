"""The scores of a run as a picture: the main metric of each task, or of each part of the only one, beside chance."""

import math
from typing import TYPE_CHECKING

from coterie.analysis.section import Plot
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.eval.run import Report
    from coterie.eval.task import Metric

__all__ = ["scores_plot"]

_Z = 1.96  # standard errors on each side of 95 % of a normal distribution


def scores_plot(report: "Report") -> Plot:
    """Bars with 95 % intervals. Scores that are no shares of 1 (perplexities) are drawn only where they are alone."""
    (title, label), bars = _bars(report)
    if not bars:
        raise RequestError("there is no score to draw: these tasks have given none")
    names, metrics = list(bars), list(bars.values())
    values = [m.value for m in metrics]
    series = {label: values}
    if any(m.chance is not None for m in metrics):
        series["chance"] = [math.nan if m.chance is None else m.chance for m in metrics]
    ends = [_ends(m) for m in metrics]
    low, high = ({label: [pair[side] for pair in ends]} for side in (0, 1))
    return Plot("bars", title, "", label, names, series, low, high)


def _ends(metric: "Metric") -> tuple[float, float]:
    """Of a 95 % interval; that of a share does not leave 0 to 1."""
    half = _Z * (metric.stderr or 0.0)
    low, high = metric.value - half, metric.value + half
    return (max(low, 0.0), min(high, 1.0)) if 0 <= metric.value <= 1 else (low, high)


def _bars(report: "Report") -> "tuple[tuple[str, str], dict[str, Metric]]":
    if len(report.tasks) == 1:
        task = report.tasks[0]
        parts = {m.group or "all": m for m in task.metrics if m.name == task.main}
        return (task.name, task.main), parts
    heads = {task.name: task.headline for task in report.tasks}
    return ("benchmarks", "score"), {n: m for n, m in heads.items() if m is not None and 0 <= m.value <= 1}
