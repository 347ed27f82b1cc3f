"""The table of ratings, its sentence and its plot."""

from coterie.analysis.section import Cell, Plot, Section
from coterie.eval.ratings import Ratings

__all__ = ["ratings_section"]

_COLUMNS = ("rank", "model", "rating", "95 %", "Elo", "95 % of orders", "Elo as filed", "battles", "win rate")


def ratings_section(found: Ratings) -> Section:
    """Best model first; `facts` has everything."""
    rows: list[tuple[Cell, ...]] = [
        (
            r.rank,
            r.model,
            round(r.rating),
            f"{r.low:.0f} to {r.high:.0f}",
            round(r.elo),
            f"{r.elo_low:.0f} to {r.elo_high:.0f}",
            round(r.elo_in_order),
            r.battles,
            round(r.win_rate, 3),
        )
        for r in found.ratings
    ]
    return Section(
        key="ratings",
        title="Ratings",
        sentence=_sentence(found),
        columns=_COLUMNS,
        rows=tuple(rows),
        plots=(_plot(found),),
        note=(
            f"Rating: Bradley-Terry, 400 points are odds of 10 to 1, intervals from {found.rounds:,} resamples of "
            f"{found.n_drawn:,} {found.drawn}; rank: 1 + the models whose interval lies above. Elo: K = 4 from 1000, "
            f"mean and spread over {found.orders:,} random orders of the battles, and in the order of the file."
        ),
        facts=found.to_json(),
    )


def _sentence(found: Ratings) -> str:
    best, n = found.ratings[0], len(found.ratings)
    equals = [r.model for r in found.ratings[1:] if r.rank == best.rank]
    lead = f"{best.model} is rated highest of {n}, with {best.rating:.0f} ({best.low:.0f} to {best.high:.0f})"
    doubt = f"; {', '.join(equals[:3])}{' and others' * (len(equals) > 3)} may be as good" if equals else ""
    return f"{lead}{doubt}. {found.n_battles:,} battles, of which {found.n_ties:,} are ties."


def _plot(found: Ratings) -> Plot:
    models = [r.model for r in found.ratings]
    return Plot(
        "bars",
        "Ratings with 95 % intervals",
        "model",
        "rating",
        models,
        {"Bradley-Terry": [r.rating for r in found.ratings], "Elo": [r.elo for r in found.ratings]},
        low={"Bradley-Terry": [r.low for r in found.ratings], "Elo": [r.elo_low for r in found.ratings]},
        high={"Bradley-Terry": [r.high for r in found.ratings], "Elo": [r.elo_high for r in found.ratings]},
    )
