"""An evaluation as people read it: a table with uncertainty, chance, protocol and seconds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.cli.output import note, print_table, printable

if TYPE_CHECKING:
    from coterie.analysis.section import Section
    from coterie.eval.run import Report, TaskReport
    from coterie.eval.task import Metric

__all__ = ["print_report"]

_MOST_ROWS = 16  # of a section's table
_MOST_GROUPS = 12  # of a task, before the table names only the extremes


def print_report(report: "Report") -> None:
    """Every score with its uncertainty and what guessing gives, then how each was measured."""
    rows: list[tuple[str, ...]] = [("task", "group", "metric", "value", "±", "chance", "items", "seconds")]
    for task in report.tasks:
        rows += _rows(task)
    print_table(rows)
    print()
    for task in report.tasks:
        print(f"  {task.name}: {task.protocol}.")
        for section in task.sections:
            print(f"  {task.name}: {section.sentence}")
            _print_section(section)
        for sentence in task.notes:
            print(f"  {task.name}: {sentence}.")
    print("  ± is the standard error.")
    for sentence in report.left_out:
        note(f"not run: {sentence}")
    if report.folder is not None:
        note(f"{report.folder / 'run.json'} has everything; repeat it with: coterie eval --repeat {report.folder}")


def _print_section(section: "Section") -> None:
    """Its table, where that is a small one; run.json has them all."""
    from coterie.analysis.section import shown as shown_cell

    if 0 < len(section.rows) <= _MOST_ROWS:
        print_table(
            [section.columns, *(tuple(printable(shown_cell(cell)) for cell in row) for row in section.rows)], indent=4
        )


def _rows(task: "TaskReport") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, metric in enumerate(_chosen(task.metrics, task.main)):
        name, seconds = (task.name, f"{task.seconds:.1f}") if number == 0 else ("", "")
        stderr, chance = ("" if v is None else shown(v) for v in (metric.stderr, metric.chance))
        value, n = shown(metric.value), str(metric.n)
        rows.append((name, printable(metric.group), metric.name, value, stderr, chance, n, seconds))
    return rows


def _chosen(metrics: "Sequence[Metric]", main: str) -> "list[Metric]":
    """All over everything; of groups the main metric only, and of many groups the ends."""
    groups = [m for m in metrics if m.group and m.name == main]
    if len(groups) > _MOST_GROUPS:
        groups.sort(key=lambda m: -m.value)
        groups = groups[:3] + groups[-3:]
    return [m for m in metrics if not m.group] + groups


def shown(value: float) -> str:
    """Four decimals below ten, where accuracies are; fewer above."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
