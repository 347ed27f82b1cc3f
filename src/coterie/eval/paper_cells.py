"""Our side of a line in the paper's tables: the figure, its interval, and how it was found."""

import math

from coterie.analysis.section import Cell
from coterie.eval.paper_tables import Bench
from coterie.eval.run import TaskReport
from coterie.eval.task import Metric

__all__ = ["COLUMNS_OURS", "interval", "main_metric", "not_run", "ours"]

COLUMNS_OURS = ("this model", "low", "high", "n", "chance", "here")
_SIGMAS = 1.96  # of a 95 % interval


def ours(bench: Bench, found: TaskReport | str) -> tuple[Cell, ...]:
    """A cell for each of `COLUMNS_OURS`, in the paper's unit; a sentence instead of a report says why there is none."""
    if isinstance(found, str):
        return not_run(found)
    metric = main_metric(bench, found)
    if metric is None:
        return (None, None, None, found.n_items, None, found.protocol)
    chance = None if metric.chance is None else metric.chance * bench.scale
    return (*interval(metric, bench.scale), metric.n, chance, f"{metric.name}: {found.protocol}")


def not_run(why: str) -> tuple[Cell, ...]:
    return (None, None, None, None, None, f"not run: {why}")


def main_metric(bench: Bench, report: TaskReport) -> Metric | None:
    """What is compared: the metric that the benchmark names, a majority over samples, else the task's main one."""
    over_all = {metric.name: metric for metric in report.metrics if not metric.group}
    majority = f"maj@{bench.samples}"
    return over_all.get(bench.metric) or over_all.get(majority) or report.headline


def interval(metric: Metric, scale: float) -> tuple[float, float | None, float | None]:
    """The value with its 95 % interval: Wilson's for a percentage of n questions, else 1.96 standard errors.

    None right of 5: 0 (0 to 43.4), where standard errors would say 0 to 0.
    """
    value = metric.value * scale
    if scale != 100:
        half = None if metric.stderr is None else _SIGMAS * metric.stderr * scale
        return value, None if half is None else value - half, None if half is None else value + half
    n, p, z = metric.n, metric.value, _SIGMAS
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return value, 100 * max(low, 0.0), 100 * min(high, 1.0)
