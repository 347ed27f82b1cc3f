"""`coterie inspect MOE --against DENSE`: how alike the experts, the dense block and each other are, layer by layer."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.output import print_json, print_table, printable, progress

if TYPE_CHECKING:
    from coterie.analysis.likeness import LayerLikeness

__all__ = ["print_likeness"]


def print_likeness(sparse: Path, dense: Path, as_json: bool) -> None:
    """Print what `analysis/likeness.py` finds; every weight is read once, a layer at a time."""
    from coterie.analysis.likeness import say

    layers = _compare(sparse, dense)
    sentence = say(layers)
    if as_json:
        document = {"model": str(sparse), "against": str(dense), "says": sentence}
        print_json(document | {"layers": [asdict(layer) for layer in layers]})
        return
    print(printable(f"Experts of {sparse} against the feed-forward block of {dense}, cosines"))
    print()
    print_table(_rows(layers), indent=0)
    print(f"\n{sentence}")


def _compare(sparse: Path, dense: Path) -> "list[LayerLikeness]":
    from coterie.analysis.likeness import check_comparable, compare_layer
    from coterie.checkpoint.by_name import TensorReader
    from coterie.checkpoint.folder import open_checkpoint

    moe, block = open_checkpoint(sparse), open_checkpoint(dense)
    check_comparable(moe.config, block.config, names=(str(sparse), str(dense)))
    n_layers = moe.config.num_hidden_layers
    found = []
    with TensorReader(moe) as of_moe, TensorReader(block) as of_block, progress("comparing", unit="layers") as report:
        for layer in range(n_layers):
            found.append(compare_layer(of_moe, of_block, layer))
            report(layer + 1, n_layers)
    return found


def _rows(layers: "list[LayerLikeness]") -> list[tuple[str, ...]]:
    from coterie.analysis.likeness import PARTS

    def range_of(values: list[float]) -> str:
        low, high = _two_digits(min(values)), _two_digits(max(values))
        return low if low == high else f"{low} to {high}"

    head = ("layer", *PARTS, "shuffled", "best match", "by chance", "in place", "each other")
    rows: list[tuple[str, ...]] = [head]
    for at in layers:
        shuffled = [value for part in PARTS for value in at.shuffled[part]]
        figures = (shuffled, [m.best for m in at.matches], [m.by_chance for m in at.matches])
        rows.append((
            str(at.layer), *(range_of(at.with_dense[part]) for part in PARTS), *map(_two_digits, map(_mean, figures)),
            f"{_mean([m.in_place for m in at.matches]):.0%}", _two_digits(_mean(list(at.each_other.values()))),
        ))  # fmt: skip
    return rows


def _two_digits(value: float) -> str:
    """Without a sign where it rounds to 0."""
    return f"{round(value, 2) + 0.0:.2f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
