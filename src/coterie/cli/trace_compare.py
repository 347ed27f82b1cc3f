"""`coterie trace compare A B ...`: how far routing moved between checkpoints that read the same text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coterie.cli.output import note, print_json, print_table, printable, progress
from coterie.cli.plot_output import check_plot, write_plot

if TYPE_CHECKING:
    from coterie.analysis.section import Section

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  coterie trace compare before.trace after.trace
  coterie trace compare step100.trace step1000.trace step10000.trace --plot drift.svg"""


@click.command("compare", epilog=_EXAMPLES)
@click.argument("traces", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--plot", type=click.Path(path_type=Path), help="Write the pictures here (.svg or .png).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")
def command(traces: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Compare routing TRACES of checkpoints, oldest first, that were recorded from the same text.

    Says layer by layer how many first choices and how many experts stayed, beside what chance gives; with three or more
    also how settled each already was, measured by the last (router saturation).
    """
    from coterie.analysis.drift_sections import compare_traces
    from coterie.analysis.trace import open_trace

    check_plot(plot)
    names = _names(traces)
    opened = [open_trace(path) for path in traces]
    with progress("comparing", unit="tokens") as report:
        sections = compare_traces(opened, names, report)
    if as_json:
        described = [
            {"name": name, "file": str(path), "model": t.model, "fingerprint": t.fingerprint, "tokens": len(t)}
            for name, path, t in zip(names, traces, opened, strict=True)
        ]
        print_json({"traces": described, "sections": [section.as_json() for section in sections]})
    else:
        _print(sections)
    if plot is not None:
        note("pictures: " + ", ".join(map(str, _draw(sections, plot))))


def _names(paths: Sequence[Path]) -> list[str]:
    """What the files are called; with their folders where two are called alike, numbered where they are the same."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in paths]
    return [f"{name} ({n + 1})" if names.count(name) > 1 else name for n, name in enumerate(names)]


def _print(sections: "Sequence[Section]") -> None:
    from coterie.analysis.section import shown

    for number, section in enumerate(sections):
        print(("\n" if number else "") + printable(section.title))
        print(printable(section.sentence) + "\n")
        rows = [tuple(printable(shown(cell)) for cell in row) for row in section.rows]
        print_table([section.columns, *rows])


def _draw(sections: "Sequence[Section]", plot: Path) -> list[Path]:
    """The first picture in `plot`, the others beside it with a number."""
    paths: list[Path] = []
    for picture in (picture for section in sections for picture in section.plots):
        path = plot.with_stem(f"{plot.stem}-{len(paths) + 1}") if paths else plot
        write_plot(picture, path)
        paths.append(path)
    return paths
