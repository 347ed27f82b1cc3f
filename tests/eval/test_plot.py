import math

import pytest

from coterie.errors import RequestError
from coterie.eval.plot import scores_plot
from coterie.eval.run import Report, TaskReport
from coterie.eval.task import Metric


def task(name: str, *metrics: Metric) -> TaskReport:
    return TaskReport(name, "p", "acc", list(metrics), 1.0, 10)


def test_several_tasks_are_bars_with_intervals_beside_chance() -> None:
    tasks = [
        task("a", Metric("acc", 0.5, 0.1, 10, 0.25), Metric("acc", 0.4, 0.1, 5, 0.25, "part")),
        task("b", Metric("acc", 0.95, 0.1, 10)),
        task("c", Metric("acc", 20.0, 1.0, 10)),
    ]
    plot = scores_plot(Report(tasks))
    assert plot.x == ["a", "b"] and plot.series["score"] == [0.5, 0.95]
    assert plot.low is not None and plot.low["score"] == pytest.approx([0.304, 0.754])
    assert plot.high is not None and plot.high["score"] == pytest.approx([0.696, 1.0])
    assert plot.series["chance"][0] == 0.25 and math.isnan(plot.series["chance"][1])


def test_of_one_task_its_parts() -> None:
    plot = scores_plot(Report([task("a", Metric("acc", 0.5, None, 1), Metric("acc", 20.0, 1.0, 5, None, "part"))]))
    assert plot.x == ["all", "part"] and plot.series == {"acc": [0.5, 20.0]}


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(RequestError, match="no score to draw"):
        scores_plot(Report([task("a")]))
