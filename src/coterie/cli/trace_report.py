"""`coterie trace report RUN.trace`: what a routing trace shows, as sentences here and as a folder with a page."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.output import note, print_json, printable, progress

if TYPE_CHECKING:
    from coterie.analysis.report import Pictures
    from coterie.analysis.section import Section
    from coterie.analysis.trace import Trace

__all__ = ["command", "describe", "find"]

_EXAMPLES = """\b
Examples:
  coterie trace report run.trace -o report
  coterie trace report run.trace --json | jq '.sections[].sentence'"""


@click.command("report", epilog=_EXAMPLES)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="A folder for index.html, every picture as .svg and .png, and report.json; an older report is replaced.",
)  # fmt: skip
@click.option(
    "--sample", type=click.IntRange(1),
    help="Tokens on which caches are simulated (default: 100,000, fewer for a model of many experts).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of sentences.")
def command(trace: Path, output: Path | None, sample: int | None, as_json: bool) -> None:
    """Say what the routing trace TRACE shows: who gets which tokens, what repeats, what must stay in memory.

    Each finding is a sentence with its figure; with -o also a table, a picture and its method on one page that needs
    no network.
    """
    from coterie.analysis.report import is_report, report_document
    from coterie.analysis.trace import open_trace
    from coterie.checkpoint.atomic import new_folder

    opened = open_trace(trace)
    if output is None:
        sections = find(opened, sample)
    else:
        import matplotlib  # noqa: F401  before the work: without it there are no pictures

        with new_folder(output, replace=is_report(output)) as folder:
            sections = find(opened, sample)
            _write(folder, trace.name, opened, sections)
    if as_json:
        print_json(report_document(describe(opened), sections))
    else:
        _print(sections)
    if output is not None:
        note(f"the report is {output / 'index.html'}")


def find(trace: "Trace", sample: int | None = None) -> "list[Section]":
    """All findings. Raises `DataError` for a trace without tokens."""
    from coterie.analysis.caching import sections
    from coterie.analysis.statistics import all_sections

    with progress("statistics", unit="tokens") as report:
        found = all_sections(trace, report)
    with progress("caches", unit="steps") as report:
        return [*found, *sections(trace, sample=sample, progress=report)]


def describe(trace: "Trace") -> dict[str, Any]:
    """What was traced."""
    return {
        "model": trace.model, "fingerprint": trace.fingerprint, "tokens": len(trace), "layers": trace.n_layers,
        "experts": trace.n_experts, "experts_per_token": trace.top_k, "domains": list(trace.domains),
    }  # fmt: skip


def _write(folder: Path, name: str, trace: "Trace", sections: "Sequence[Section]") -> None:
    from coterie.analysis.report import draw, page, report_document
    from coterie.analysis.text_page import sample_html

    with progress("pictures", unit="pictures") as report:
        pictures = draw(sections, report)
    _write_pictures(folder, pictures)
    about = describe(trace)
    document = json.dumps(report_document(about, sections), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "report.json").write_text(document + "\n", encoding="utf-8")
    shown = [(key.replace("_", " "), _about(value)) for key, value in {"trace": name, **about}.items()]
    text = page(f"Routing of {trace.model}", shown, sections, pictures, sample_html(trace))
    (folder / "index.html").write_text(text, encoding="utf-8")


def _write_pictures(folder: Path, pictures: "dict[str, Pictures]") -> None:
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture.svg, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(picture.png)


def _about(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value


def _print(sections: "Sequence[Section]") -> None:
    """A title and, below it, its sentence, within the width of the terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    for section in sections:
        print(printable(section.title))
        print(textwrap.fill(printable(section.sentence), width, initial_indent="  ", subsequent_indent="  "))
