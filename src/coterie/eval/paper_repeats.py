"""Table 5 of the Mixtral paper: how often consecutive tokens meet the same expert, from a recorded trace."""

from collections.abc import Sequence
from typing import Any

from coterie.analysis.paper_routing import PAPER_LAYERS, PAPER_SHAPE, TABLE_5, paper_means
from coterie.analysis.repeats import Repeats, measure_repeats, random_repeats
from coterie.analysis.section import Cell, Section
from coterie.analysis.trace import Trace

__all__ = ["repeats_section"]

_COLUMNS = (
    "text", "of", "same first: low", "middle", "top", "one in common: low", "middle", "top", "pairs",
)  # fmt: skip
_NOTE = (
    "Per cent of consecutive tokens that have the same first choice, and that have an expert in common, at the first, "
    "the middle and the last layer. The paper's text is the validation set of The Pile, its layers are 0, 15 and 31 "
    "of 32. 'Uniform' is what choices at random give: 1/E, and "
    "1 - C(E-K, K)/C(E, K)."
)


def repeats_section(trace: Trace | str, model: str) -> Section:
    """The paper's domains, then ours; with a sentence instead of a trace, the paper's alone and why."""
    rows: list[tuple[Cell, ...]] = [
        (domain, "Mixtral 8x7B", *figures.first, *figures.either, None) for domain, figures in TABLE_5.items()
    ]
    rows.append(_uniform("Mixtral 8x7B", random_repeats(*PAPER_SHAPE)))
    if isinstance(trace, str):
        return Section("table-5", _title(), f"Not run: {trace}.", _COLUMNS, tuple(rows), note=_NOTE)
    found = measure_repeats(trace)
    layers = (0, (trace.n_layers - 1) // 2, trace.n_layers - 1)  # of 32: 0, 15, 31, as in the paper
    rows += [(name, model, *_cells(repeats, layers), repeats.n_pairs) for name, repeats in found.items()]
    rows.append(_uniform(model, found["all"].uniform))
    return Section(
        "table-5", _title(), _sentence(found["all"], layers), _COLUMNS, tuple(rows), note=_NOTE,
        facts={name: _facts(repeats, layers) for name, repeats in found.items()},
    )  # fmt: skip


def _title() -> str:
    layers = ", ".join(map(str, PAPER_LAYERS))
    return f"Table 5: consecutive tokens with the same expert (the paper: layers {layers})"


def _uniform(model: str, chances: tuple[float, float]) -> tuple[Cell, ...]:
    first, either = (100 * chance for chance in chances)
    return ("uniform", model, *(first,) * 3, *(either,) * 3, None)


def _cells(repeats: Repeats, layers: tuple[int, ...]) -> list[Cell]:
    return [100 * float(shares.value[layer]) for shares in (repeats.first, repeats.either) for layer in layers]


def _facts(repeats: Repeats, layers: tuple[int, ...]) -> dict[str, Any]:
    cells = _cells(repeats, layers)
    n = len(layers)
    return {"layers": list(layers), "first": cells[:n], "either": cells[n:], "pairs": repeats.n_pairs}


def _sentence(repeats: Repeats, layers: tuple[int, ...]) -> str:
    first, _ = repeats.uniform
    shares = [100 * float(repeats.first.value[layer]) for layer in layers]
    return (
        f"At layers {_listed(layers, '.0f')} the next token has the same first choice in {_listed(shares, '.1f')} % of "
        f"the cases, where uniform choices give {100 * first:.1f} %; in Mixtral, at layers "
        f"{_listed(PAPER_LAYERS, '.0f')} of 32, it was {_listed(paper_means().first, '.1f')} %."
    )


def _listed(values: Sequence[float], form: str) -> str:
    *first, last = (format(value, form) for value in values)
    return f"{', '.join(first)} and {last}"
