"""The figures of MT-bench: means over questions, so that the two turns of a question count as one witness."""

import math
from collections.abc import Mapping, Sequence

from coterie.analysis.section import Cell, Plot, Section
from coterie.eval.battle_file import SCORES
from coterie.eval.battles import Fought, first_place_share
from coterie.eval.mt_bench_answers import Conversation
from coterie.eval.task import Item, Judged, Metric, mean_metrics

__all__ = ["battle_section", "judged", "metrics", "rating_section"]

Ratings = Mapping[tuple[str, int], float]


def judged(conversations: Sequence[Conversation], ratings: Ratings, fought: Sequence[Fought]) -> list[Judged]:
    """For each question with a verdict: `rating` (mean of its turns), `rating_turn_N`, `win_rate` (ties half)."""
    found = []
    for c in conversations:
        turns = {n: ratings[c.id, n] for n in range(1, len(c.turns) + 1) if (c.id, n) in ratings}
        numbers = {"rating": _mean(list(turns.values()))} if turns else {}
        numbers |= {f"rating_turn_{n}": value for n, value in turns.items()}
        scores = [SCORES[f.winner] for f in fought if f.question_id == c.id]
        numbers |= {"win_rate": _mean(scores)} if scores else {}
        if numbers:
            found.append((Item(c.id, (), {}, c.category), numbers))
    return found


def metrics(found: list[Judged]) -> list[Metric]:
    """Means with standard errors over questions, overall and by category; a win rate of 0.5 is that of equals."""
    plain = mean_metrics(found, "rating") if found else []
    return [m if m.name != "win_rate" else Metric(m.name, m.value, m.stderr, m.n, 0.5, m.group) for m in plain]


def rating_section(conversations: Sequence[Conversation], ratings: Ratings) -> Section:
    """The table by category and turn, and its bars."""
    categories = list(dict.fromkeys(c.category for c in conversations))
    n_turns = max(len(c.turns) for c in conversations)
    table = {g: [_of(conversations, ratings, g, n) for n in range(1, n_turns + 1)] for g in (*categories, "")}
    rows: list[tuple[Cell, ...]] = []
    for group, turns in table.items():
        mean, n = _mean(_by_question(conversations, ratings, group)), sum(map(len, turns))
        rows.append((group or "all", *(_round(_mean(turn)) for turn in turns), _round(mean), n))
    overall = _mean(_by_question(conversations, ratings, ""))
    bars = Plot(
        "bars",
        "MT-bench by category",
        "category",
        "rating, 1 to 10",
        categories,
        {f"turn {n + 1}": [_mean(table[g][n]) for g in categories] for n in range(n_turns)},
        references={"mean": overall},
    )
    return Section(
        key="mt-bench",
        title="MT-bench",
        sentence=f"The judge's mean rating of a question is {overall:.2f} of 10, from {len(ratings)} rated answers.",
        columns=("category", *bars.series, "mean", "ratings"),
        rows=tuple(rows),
        plots=(bars,),
        note="Each answer is rated by itself; a judge tends to favour long answers and those that resemble its own.",
    )


def battle_section(fought: Sequence[Fought], names: tuple[str, str]) -> Section:
    """Wins, ties and losses by category, and whether the judge minds the order."""
    groups = [*dict.fromkeys(f.category for f in fought), ""]
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        winners = [f.winner for f in fought if group in ("", f.category)]
        counts = [winners.count(w) for w in ("model_a", "tie", "model_b")]
        rows.append((group or "all", *counts, _round(_mean([SCORES[w] for w in winners]))))
    share, both = first_place_share(fought), [f for f in fought if f.verdicts]
    n_contradict = sum(f.verdicts in (("A", "A"), ("B", "B")) for f in both)
    order = f" Of its verdicts for one side, {share:.0%} were for what it read first;" if share is not None else ""
    order += f" {n_contradict} of {len(both)} pairs of verdicts contradict each other." if both else ""
    return Section(
        key="battles",
        title=f"{names[0]} against {names[1]}",
        sentence=f"{names[0]} wins {rows[-1][-1]} of {len(fought)} battles, a tie being half a win.{order}",
        columns=("category", f"{names[0]} wins", "ties", f"{names[1]} wins", "win rate"),
        rows=tuple(rows),
        note="Each pair is judged in both orders and won only where both verdicts agree.",
        facts={"first_place_share": share, "contradictions": n_contradict, "pairs": len(both)},
    )


def _of(conversations: Sequence[Conversation], ratings: Ratings, group: str, turn: int) -> list[float]:
    return [ratings[c.id, turn] for c in conversations if group in ("", c.category) and (c.id, turn) in ratings]


def _by_question(conversations: Sequence[Conversation], ratings: Ratings, group: str) -> list[float]:
    """The mean rating of each question that has one: what the metric `rating` is the mean of."""
    found = []
    for c in conversations:
        turns = [ratings[c.id, n] for n in range(1, len(c.turns) + 1) if (c.id, n) in ratings]
        if turns and group in ("", c.category):
            found.append(_mean(turns))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _round(value: float) -> float:
    return round(value, 3)
