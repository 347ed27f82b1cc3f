"""What the verbs share in talking to people and to programs: data on stdout, everything else on stderr.

A progress bar is drawn on a terminal only; elsewhere it is a plain line now and then, so that a log stays readable.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

__all__ = [
    "human_bytes",
    "human_count",
    "human_operations",
    "is_terminal",
    "note",
    "print_json",
    "print_markdown",
    "print_table",
    "printable",
    "progress",
]

_NUMBER = re.compile(r"[0-9][0-9,.]*( [kMGTP]?(B|FLOP))?")
_SECONDS_BETWEEN_LINES = 10.0


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinities, which JSON has not, are refused."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def print_table(rows: Sequence[tuple[str, ...]], *, indent: int = 2) -> None:
    """Rows in columns: numbers to the right, words to the left."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        cells = [
            c.rjust(w) if _NUMBER.fullmatch(c) else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=False))
        ]
        print(" " * indent + "  ".join(cells).rstrip())


def print_markdown(text: str) -> None:
    """Rendered on a terminal, as it is elsewhere; control characters never reach the terminal."""
    text = printable(text, keep="\n\t")
    if not is_terminal(sys.stdout):
        print(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def printable(text: str, *, keep: str = "") -> str:
    """The text with control characters (a file may hold some that take over a terminal) written as escapes."""
    return "".join(c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """One line for the person at the screen, on stderr."""
    print(text, file=sys.stderr, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a person is looking at the stream."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def human_bytes(n: float) -> str:
    """`93405585408` as `93.4 GB`: decimal units, three digits."""
    return _scaled(n, ("B", "kB", "MB", "GB", "TB", "PB"))


def human_count(n: float) -> str:
    """`46702792704` as `46.7 B`: thousand, million, billion (10^9), trillion (10^12)."""
    return _scaled(n, ("", "k", "M", "B", "T")).rstrip()


def human_operations(n: float) -> str:
    """`25497174016` as `25.5 GFLOP`."""
    return _scaled(n, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


@contextmanager
def progress(title: str, *, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """`with progress("loading") as report: report(done, total)`: a bar on a terminal, else a line every ten seconds."""
    if is_terminal(sys.stderr):
        with _bar(title, unit) as report:
            yield report
    else:
        yield _lines(title, unit)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str, unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last < _SECONDS_BETWEEN_LINES:
            return
        last = time.monotonic()
        show = human_bytes if unit == "bytes" else str
        note(f"{title}: {show(done)} of {show(total)}" if total else f"{title}: {show(done)}")

    return report


def _scaled(n: float, units: tuple[str, ...]) -> str:
    for unit in units:
        if abs(n) < 999.5 or unit == units[-1]:
            break
        n /= 1000
    text = f"{n:.0f}" if n >= 99.95 or unit == units[0] else f"{n:.1f}" if n >= 9.995 else f"{n:.2f}"
    return f"{text} {unit}"
