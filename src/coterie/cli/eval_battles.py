"""`coterie eval --battles FILE.jsonl`: from who beat whom to ratings. It needs no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note, print_json, print_table, printable, progress
from coterie.cli.plot_output import check_plot, write_plot
from coterie.errors import RequestError, nearest

if TYPE_CHECKING:
    from coterie.eval.ratings import Ratings

__all__ = ["print_battles"]

_SETTINGS = ("anchor", "orders", "rounds")


def print_battles(
    files: Sequence[Path], settings: Mapping[str, str], *, seed: int, as_json: bool, plot: Path | None
) -> None:
    """The table on stdout, or everything as JSON; what to doubt on stderr. Settings: anchor, rounds, orders."""
    from coterie.eval.ratings_section import ratings_section

    check_plot(plot)
    found = _rate(files, settings, seed)
    section = ratings_section(found)
    if plot is not None:
        write_plot(section.plots[0], plot)
        note(f"{plot} has the plot")
    if as_json:
        print_json({"files": _described(files), **found.to_json()})
    else:
        print(printable(section.sentence))
        header = tuple(section.columns)
        print_table([header, *(tuple(printable(str(cell)) for cell in row) for row in section.rows)])
        note(section.note)
    for sentence in found.notes:
        note(f"note: {printable(sentence)}")


def _rate(files: Sequence[Path], settings: Mapping[str, str], seed: int) -> "Ratings":
    from coterie.eval.anchor import parse_anchor
    from coterie.eval.battle_file import read_battles
    from coterie.eval.ratings import rate
    from coterie.eval.settings import whole

    for name in settings:
        if name not in _SETTINGS:
            expected = ", ".join(_SETTINGS)
            raise RequestError(f"--set {name}: --battles takes {expected}{nearest(name, _SETTINGS)}")
    rounds = whole(settings, "rounds", 1000, least=10, most=100_000)
    orders = whole(settings, "orders", 100, least=1, most=10_000)
    anchor = parse_anchor(settings["anchor"]) if "anchor" in settings else None
    battles = read_battles(files)
    with progress("rating", unit="steps") as report:
        return rate(battles, rounds=rounds, orders=orders, seed=seed, anchor=anchor, progress=report)


def _described(files: Sequence[Path]) -> list[dict[str, Any]]:
    from coterie.eval.rows import read_rows

    return [{"path": str(path), "sha256": read_rows(path).sha256} for path in files]
