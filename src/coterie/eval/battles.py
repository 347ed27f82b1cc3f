"""Battles between two models' answers: the judge sees each pair in both orders, and only a verdict that holds counts.

A judge prefers what it reads first more often than it should. So a model wins a turn where it is found better in both
orders; everything else, two verdicts that contradict each other too, is a tie. Without a judge's comparison, two
ratings of the same turn make a battle: a tie where they are less than 0.1 apart.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.eval.journal import Journal
from coterie.eval.judge import Judge
from coterie.eval.judge_prompts import BATTLE_REMINDER, battle_messages, read_winner
from coterie.eval.judgments import Sought, ask_all
from coterie.eval.mt_bench_answers import Answers, Conversation

__all__ = ["Fought", "fight", "first_place_share", "from_ratings", "settle", "write_battles"]

TIE_WITHIN = 0.1
_PLACES = {"A": "model_a", "B": "model_b", "tie": "tie"}
_SWAPPED = {"A": "model_b", "B": "model_a", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Fought:
    """A line of battles.jsonl. `verdicts` are what the judge said of the two orders: "A" is what it read first."""

    question_id: str
    category: str
    turn: int
    model_a: str
    model_b: str
    winner: str
    judge: str
    verdicts: tuple[str, ...] = ()


def settle(first: str, swapped: str) -> str:
    """The winner from the verdicts on (a, b) and on (b, a)."""
    return _PLACES[first] if _PLACES[first] == _SWAPPED[swapped] else "tie"


def fight(
    judge: Judge,
    journal: Journal,
    conversations: Sequence[Conversation],
    ours: Mapping[str, Answers],
    theirs: Mapping[str, Answers],
    names: tuple[str, str],
    progress: Callable[[int, int], None],
) -> tuple[list[Fought], int]:
    """Every turn that both answered, in both orders; and how many lack one of the verdicts and are left out."""
    turns = [(c, n) for c in conversations for n in range(len(c.turns)) if c.id in ours and c.id in theirs]
    orders = [(c, n, k, pair) for c, n in turns for k, pair in enumerate(_orders(ours[c.id], theirs[c.id]))]
    sought = [_sought(c, n, pair, k) for c, n, k, pair in orders]
    verdicts = ask_all(judge, journal, sought, progress)
    fought = []
    for (c, n), first, swapped in zip(turns, verdicts[::2], verdicts[1::2], strict=True):
        if isinstance(first, str) and isinstance(swapped, str):
            winner = settle(first, swapped)
            fought.append(Fought(c.id, c.category, n + 1, *names, winner, judge.endpoint.model, (first, swapped)))
    return fought, len(turns) - len(fought)


def from_ratings(
    conversations: Sequence[Conversation],
    ours: Mapping[tuple[str, int], float],
    theirs: Mapping[tuple[str, int], float],
    names: tuple[str, str],
    judge: str,
) -> list[Fought]:
    """Battles of the turns, by (question, turn), that both have a rating of."""
    fought = []
    for c in conversations:
        for turn in range(1, len(c.turns) + 1):
            if (c.id, turn) in ours and (c.id, turn) in theirs:
                ahead = ours[c.id, turn] - theirs[c.id, turn]
                winner = "tie" if abs(ahead) < TIE_WITHIN else "model_a" if ahead > 0 else "model_b"
                fought.append(Fought(c.id, c.category, turn, *names, winner, judge))
    return fought


def first_place_share(fought: Sequence[Fought]) -> float | None:
    """How often the judge preferred what it read first, of the verdicts that prefer one; 0.5 is fair."""
    said = [v for f in fought for v in f.verdicts if v != "tie"]
    return said.count("A") / len(said) if said else None


def write_battles(path: Path, fought: Sequence[Fought]) -> None:
    """battles.jsonl, whole or not at all."""
    with disk_errors(path), new_file(path) as file:
        file.writelines(json.dumps(asdict(f), ensure_ascii=False).encode() + b"\n" for f in fought)


def _orders(ours: Answers, theirs: Answers) -> tuple[tuple[Answers, Answers], tuple[Answers, Answers]]:
    return (ours, theirs), (theirs, ours)


def _sought(c: Conversation, n: int, answers: tuple[Answers, Answers], order: int) -> Sought:
    a, b = (x.turns[: n + 1] for x in answers)
    about = {"kind": "battle", "question_id": c.id, "turn": n + 1, "order": order + 1}
    return Sought(about, battle_messages(c.turns, a, b, c.references), read_winner, BATTLE_REMINDER)
