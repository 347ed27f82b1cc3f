"""From battles to a table of ratings: Bradley-Terry with intervals, Elo with what the order is worth.

Intervals are 95 % percentiles of a bootstrap. Questions are drawn, not battles, where the battles say what question
they are about: the two turns of a question, or its meetings of several models, are no independent witnesses.
Where somebody never lost (or never won), the likeliest rating is infinite: then one drawn battle is added to each pair
that met, and a note says so.

Shapes: R resamples, M models, N battles.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.errors import DataError, RequestError, nearest
from coterie.eval.battle_file import Battle
from coterie.eval.bradley_terry import bradley_terry, can_rate, is_joined
from coterie.eval.elo import elo, elo_in_orders

__all__ = ["Pair", "Rating", "Ratings", "rate"]

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]

_FEWEST_QUESTIONS = 10  # to draw questions rather than battles
_CELLS = 2_000_000  # of the tables of resamples that are solved together


@dataclass(frozen=True, slots=True)
class Rating:
    """One model. `rank` is one more than the number of models that are better beyond doubt (low above our high)."""

    rank: int
    model: str
    rating: float  # Bradley-Terry
    low: float
    high: float
    elo: float  # mean over random orders
    elo_low: float
    elo_high: float
    elo_in_order: float  # in the order of the file
    battles: int
    win_rate: float  # a tie is half a win


@dataclass(frozen=True, slots=True)
class Pair:
    """How two models did against each other, and how often the ratings expect `a` to win."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    expected: float


@dataclass(frozen=True, slots=True)
class Ratings:
    """The whole result, best model first."""

    ratings: list[Rating]
    pairs: list[Pair]
    n_battles: int
    n_ties: int
    drawn: str  # what the bootstrap drew: "battles" or "questions"
    n_drawn: int
    rounds: int
    orders: int
    seed: int
    anchor: dict[str, float] | None
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Table:
    """The battles as arrays."""

    models: list[str]
    a_N: NDArray[np.intp]
    b_N: NDArray[np.intp]
    score_N: Array
    question_N: NDArray[np.intp]  # what is drawn together
    drawn: str

    @property
    def n_drawn(self) -> int:
        return int(self.question_N.max()) + 1

    def wins(self, weight_N: Array | None = None) -> Array:
        """[M, M]: row beats column; each battle counts as often as its weight says."""
        M, w_N = len(self.models), np.ones(len(self.a_N)) if weight_N is None else weight_N
        won = np.bincount(self.a_N * M + self.b_N, w_N * self.score_N, M * M)
        lost = np.bincount(self.b_N * M + self.a_N, w_N * (1 - self.score_N), M * M)
        table: Array = (won + lost).reshape(M, M).astype(np.float64)
        return table


def rate(
    battles: Sequence[Battle],
    *,
    rounds: int = 1000,
    orders: int = 100,
    seed: int = 0,
    anchor: tuple[str, float] | None = None,
    progress: Progress = lambda done, total: None,
) -> Ratings:
    """Rate every model that fought. `anchor` moves the scale so that a model has this rating; else the mean is 1000.

    Raises `DataError` where models fall into groups that never met, `RequestError` for an anchor that did not fight.
    """
    table = _table(battles)
    _check_anchor(anchor, table.models)
    wins_MM = table.wins()
    _check_joined(wins_MM, table.models)
    draw_MM: Array = np.where(
        wins_MM + wins_MM.T > 0, 0.5, 0.0
    )  # half a win each: one drawn battle for each pair that met
    is_bounded = bool(can_rate(wins_MM[None])[0])
    fit_MM = wins_MM if is_bounded else wins_MM + draw_MM
    rating_M = _anchored(bradley_terry(fit_MM[None]), table.models, anchor)[0]
    resampled_RM, n_helped = _bootstrap(table, draw_MM, is_bounded, rounds, seed, progress)
    low_M, high_M = np.percentile(_anchored(resampled_RM, table.models, anchor), [2.5, 97.5], axis=0)
    elo_PM = elo_in_orders(
        table.a_N, table.b_N, table.score_N, len(table.models), n_orders=orders, seed=seed, progress=progress
    )
    in_order_M = elo(table.a_N, table.b_N, table.score_N, len(table.models))
    elos = (_anchored(elo_PM, table.models, anchor), _anchored(in_order_M[None], table.models, anchor)[0])
    return Ratings(
        ratings=_ranked(table, wins_MM, rating_M, low_M, high_M, *elos),
        pairs=_pairs(table, rating_M),
        n_battles=len(battles),
        n_ties=int((table.score_N == 0.5).sum()),
        drawn=table.drawn,
        n_drawn=table.n_drawn,
        rounds=rounds,
        orders=len(elo_PM),
        seed=seed,
        anchor=None if anchor is None else {anchor[0]: anchor[1]},
        notes=_notes(table, wins_MM, is_bounded, n_helped, rounds),
    )


def _table(battles: Sequence[Battle]) -> _Table:
    models = sorted({b.a for b in battles} | {b.b for b in battles})
    place = {name: i for i, name in enumerate(models)}
    questions: dict[str, int] = {}
    question_N = [questions.setdefault(b.question or f"\0{n}", len(questions)) for n, b in enumerate(battles)]
    is_by_question = _FEWEST_QUESTIONS <= len(questions) < len(battles)
    return _Table(
        models,
        np.array([place[b.a] for b in battles], dtype=np.intp),
        np.array([place[b.b] for b in battles], dtype=np.intp),
        np.array([b.score for b in battles]),
        np.array(question_N if is_by_question else range(len(battles)), dtype=np.intp),
        "questions" if is_by_question else "battles",
    )


def _check_anchor(anchor: tuple[str, float] | None, models: list[str]) -> None:
    if anchor is not None and anchor[0] not in models:
        known = ", ".join(models[:12]) + (", ..." if len(models) > 12 else "")
        raise RequestError(
            f"the anchor {anchor[0]!r} fought no battle, expected one of {known}{nearest(anchor[0], models)}"
        )


def _check_joined(wins_MM: Array, models: list[str]) -> None:
    if is_joined(wins_MM):
        return
    met_MM = (wins_MM + wins_MM.T > 0) | np.eye(len(models), dtype=bool)
    group = met_MM[0]
    while (wider := met_MM[group].any(0)).sum() > group.sum():
        group = wider
    ours, others = ([m for m, g in zip(models, group, strict=True) if bool(g) is side] for side in (True, False))
    raise DataError(
        f"no chain of battles leads from {', '.join(ours[:5])} to {', '.join(others[:5])}, so they have no common "
        "scale: add battles between the two groups, or rate each by itself"
    )


def _bootstrap(
    table: _Table, draw_MM: Array, is_bounded: bool, rounds: int, seed: int, progress: Progress
) -> tuple[Array, int]:
    """Ratings [R, M] of `rounds` resamples, and how many of them needed the drawn battles to be finite."""
    rng = np.random.default_rng(seed)
    found, n_helped = [], 0
    at_once = max(1, min(100, _CELLS // draw_MM.size))
    for start in range(0, rounds, at_once):
        wins_RMM = np.stack([_resample(table, rng) for _ in range(min(at_once, rounds - start))])
        helped_R = ~can_rate(wins_RMM) if is_bounded else np.ones(len(wins_RMM), dtype=bool)
        wins_RMM[helped_R] += draw_MM
        n_helped += int(helped_R.sum())
        found.append(bradley_terry(wins_RMM))
        progress(min(start + at_once, rounds), rounds)
    return np.concatenate(found), n_helped


def _resample(table: _Table, rng: np.random.Generator) -> Array:
    n = table.n_drawn
    weight = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
    return table.wins(weight[table.question_N])


def _anchored(rating_RM: Array, models: list[str], anchor: tuple[str, float] | None) -> Array:
    if anchor is None:
        return rating_RM
    own_R = rating_RM[:, models.index(anchor[0])]
    return rating_RM - own_R[:, None] + anchor[1]


def _ranked(
    table: _Table, wins_MM: Array, rating_M: Array, low_M: Array, high_M: Array, elo_PM: Array, in_order_M: Array
) -> list[Rating]:
    elo_low_M, elo_high_M = np.percentile(elo_PM, [2.5, 97.5], axis=0)
    met_M = (wins_MM + wins_MM.T).sum(1)
    rows = [
        Rating(
            rank=1 + int((low_M > high_M[m]).sum()),
            model=table.models[m],
            rating=float(rating_M[m]),
            low=float(low_M[m]),
            high=float(high_M[m]),
            elo=float(elo_PM[:, m].mean()),
            elo_low=float(elo_low_M[m]),
            elo_high=float(elo_high_M[m]),
            elo_in_order=float(in_order_M[m]),
            battles=round(met_M[m]),
            win_rate=float(wins_MM[m].sum() / met_M[m]),
        )
        for m in range(len(table.models))
    ]
    return sorted(rows, key=lambda row: (round(-row.rating, 6), row.model))


def _pairs(table: _Table, rating_M: Array) -> list[Pair]:
    M, pairs = len(table.models), []
    low_N, high_N = np.minimum(table.a_N, table.b_N), np.maximum(table.a_N, table.b_N)
    score_N = np.where(table.a_N == low_N, table.score_N, 1 - table.score_N)
    for code in np.unique(low_N * M + high_N):
        i, j = divmod(int(code), M)
        s = score_N[low_N * M + high_N == code]
        expected = 1 / (1 + 10 ** ((rating_M[j] - rating_M[i]) / 400))
        wins, ties, losses = (int((s == v).sum()) for v in (1.0, 0.5, 0.0))
        pairs.append(Pair(table.models[i], table.models[j], wins, ties, losses, float(expected)))
    return pairs


def _notes(table: _Table, wins_MM: Array, is_bounded: bool, n_helped: int, rounds: int) -> list[str]:
    notes = []
    if not is_bounded:
        never_lost = [m for m, lost in zip(table.models, wins_MM.sum(0), strict=True) if not lost]
        never_won = [m for m, won in zip(table.models, wins_MM.sum(1), strict=True) if not won]
        who = [f"{', '.join(never_lost[:5])} never lost"] * bool(never_lost)
        who += [f"{', '.join(never_won[:5])} never won"] * bool(never_won)
        reason = " and ".join(who) or "some models won every battle against all the others"
        notes.append(
            f"{reason}: without bound, so one drawn battle was added to each pair that met, and the "
            "intervals say less than they should"
        )
    elif n_helped:
        notes.append(
            f"in {n_helped} of {rounds} resamples some models won every battle against the others: there one drawn "
            "battle was added to each pair"
        )
    n = table.n_drawn
    if n < 30:
        notes.append(f"{n} {table.drawn} are few: the intervals are rough")
    return notes
