"""The figures of the reliability tests as the table of docs/reliability.md.

    COTERIE_FULL=1 COTERIE_FIGURES=figures.json python -m pytest tests/server/reliability
    python benchmarks/reliability_report.py figures.json

Each test that ends well leaves its counts and medians in the file; one that fails leaves nothing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end -->"
UNITS = {"_per_s": "/s", "_ms": " ms", "_mb": " MB", "_s": " s"}


def row(name: str, numbers: Mapping[str, float]) -> str:
    """`| disconnects | clients 1,000; memory 0.3 MB |`"""
    return f"| {name} | {'; '.join(shown(key, value) for key, value in numbers.items())} |"


def shown(key: str, value: float) -> str:
    unit = next((unit for ending, unit in UNITS.items() if key.endswith(ending)), "")
    label = key.removesuffix(next((e for e in UNITS if key.endswith(e)), "")).replace("_", " ")
    number = f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{label} {number}{unit}"


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    return (
        "\n".join(["| test | figures |", "|---|---|", *(row(name, figures[name]) for name in sorted(figures))]) + "\n"
    )


def filled(page: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """The page with these figures in their place."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}{table(figures)}{END}{after}"


def main(words: Sequence[str]) -> None:
    """Fill the page from the file."""
    if len(words) != 1:
        raise SystemExit(__doc__)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), json.loads(Path(words[0]).read_text())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
