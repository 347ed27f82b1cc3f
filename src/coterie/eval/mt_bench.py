"""MT-bench: eighty conversations of two turns, each answer rated from 1 to 10 by a judge behind HTTP.

The model answers first, everything; then the judge is asked, several questions at once. Both are written down line by
line, so an interrupted run goes on where it was, and a run without a judge can be judged later. With `against`, the
folder of another model's run, the judge also compares the two, in both orders: battles.jsonl is for `--battles`.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.engine.record import Window, read_windows
from coterie.errors import DataError
from coterie.eval.battles import Fought, fight, from_ratings, write_battles
from coterie.eval.journal import Journal
from coterie.eval.judge import Judge
from coterie.eval.judge_prompts import RATING_REMINDER, rating_messages, read_rating
from coterie.eval.judge_settings import NAMES, JudgeSettings
from coterie.eval.judgments import Sought, ask_all
from coterie.eval.mt_bench_answers import NO_ROOM, Answers, Conversation, answer_all, read_conversation
from coterie.eval.mt_bench_report import battle_section, judged, metrics, rating_section
from coterie.eval.mt_bench_runs import ANSWERS, BATTLES, JUDGMENTS, read_answers, read_ratings
from coterie.eval.task import Context, TaskResult, Work

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["MtBench"]

Ratings = dict[tuple[str, int], float]


class MtBench(Work):
    """The ratings' mean over questions, by turn and by category."""

    name = "mt_bench"
    file = "mt_bench"
    metric = "rating"
    protocol = (
        "two turns, temperature 0.7 for writing and roleplay, 0.1 for stem and humanities, else 0; a judge at "
        "temperature 0 rates each turn from 1 to 10, with the reference answer where there is one"
    )
    settings = NAMES

    def run(self, lm: "LanguageModel", context: Context) -> TaskResult:
        """Answer, rate, and compare where another run is named."""
        settings = JudgeSettings.of(context.settings)
        conversations = _conversations(context)
        theirs = read_answers(settings.against) if settings.against else {}
        judge = settings.open_judge()
        if judge is None and context.run_dir is None:
            note = (
                "not run: its answers need a judge (--judge URL), or a folder to be kept in (-o RUN) and judged later"
            )
            return TaskResult([], notes=[note])
        with ExitStack() as stack:
            answers_file, judgments_file = (stack.enter_context(_journal(context, n)) for n in (ANSWERS, JUDGMENTS))
            answers = answer_all(
                lm,
                conversations,
                answers_file,
                max_tokens=settings.max_tokens,
                seed=context.seed,
                progress=partial(context.progress, "mt_bench: answering"),
                seen=partial(_record, context.recorder),
            )
            n_tokens = sum(sum(a.n_tokens) for a in answers.values())
            notes = _about_answers(lm, settings.max_tokens, list(answers.values()))
            if judge is None:
                notes.append(f"the answers are in {context.run_dir}; nobody rated them: add --judge URL")
                return TaskResult([], notes=notes, n_items=len(answers), n_tokens=n_tokens)
            bench = _Bench(judge, judgments_file, conversations, answers, context)
            ratings = bench.rate()
            fought, names = bench.compare(lm.name, settings, theirs, ratings) if theirs else ([], ("", ""))
        sections = [rating_section(conversations, ratings)] if ratings else []
        sections += [battle_section(fought, names)] if fought else []
        notes += [*bench.notes, *_about_judge(judge)]
        return TaskResult(metrics(judged(conversations, ratings, fought)), sections, notes, len(answers), n_tokens)


@dataclass
class _Bench:
    """The judge's part, once there are answers."""

    judge: Judge
    journal: Journal
    conversations: Sequence[Conversation]
    answers: Mapping[str, Answers]
    context: Context
    notes: list[str] = field(default_factory=list)

    def rate(self) -> Ratings:
        """The rating of each turn, by question and turn (from 1); those that did not come are left out."""
        turns = [(c, n) for c in self.conversations for n in range(len(c.turns))]
        sought = [
            Sought(
                {"kind": "rating", "question_id": c.id, "category": c.category, "turn": n + 1},
                rating_messages(c.turns, self.answers[c.id].turns[: n + 1], c.references),
                read_rating,
                RATING_REMINDER,
            )
            for c, n in turns
        ]
        values = ask_all(self.judge, self.journal, sought, partial(self.context.progress, "mt_bench: judging"))
        return {(c.id, n + 1): v for (c, n), v in zip(turns, values, strict=True) if isinstance(v, float)}

    def compare(
        self, name: str, settings: JudgeSettings, theirs: Mapping[str, Answers], ratings: Ratings
    ) -> tuple[list[Fought], tuple[str, str]]:
        """Battles with the answers of another run, written to battles.jsonl, and the names of the two sides."""
        assert settings.against is not None
        names = _names(name, theirs, settings.against)
        if settings.pairwise == "ratings":
            of_theirs = read_ratings(settings.against)
            fought = from_ratings(self.conversations, ratings, of_theirs, names, self.judge.endpoint.model)
        else:
            progress = partial(self.context.progress, "mt_bench: comparing")
            fought, n_left_out = fight(
                self.judge, self.journal, self.conversations, self.answers, theirs, names, progress
            )
            self.notes += [f"{n_left_out} turns lack a verdict and make no battle"] * bool(n_left_out)
        if self.context.run_dir is not None and fought:
            write_battles(self.context.run_dir / BATTLES, fought)
            self.notes.append(f"coterie eval --battles {self.context.run_dir / BATTLES} makes ratings of the battles")
        return fought, names


def _journal(context: Context, name: str) -> Journal:
    return Journal(context.run_dir / name if context.run_dir is not None else None)


def _conversations(context: Context) -> list[Conversation]:
    read = context.files.rows(MtBench.file)
    seen: dict[str, Conversation] = {}
    for n, row in enumerate(read.rows):
        conversation = read_conversation(row, read.where(n))
        if conversation.id in seen:
            raise DataError(f"{read.where(n)}: question_id {conversation.id!r} was there before, expected a new one")
        seen[conversation.id] = conversation
    return _limited(list(seen.values()), context.limit)


def _limited(conversations: list[Conversation], limit: int | None) -> list[Conversation]:
    """The first `limit` of them when the categories take turns."""
    turns: Counter[str] = Counter()
    ranked = []
    for place, c in enumerate(conversations):
        ranked.append((turns[c.category], place))
        turns[c.category] += 1
    return [conversations[place] for place in sorted(place for _, place in sorted(ranked)[:limit])]


def _record(recorder: Any, ids: list[int]) -> None:
    """Read a conversation once more for its routing, where that is recorded."""
    if recorder is not None and ids:
        deque(read_windows(recorder, [Window(ids, MtBench.name)]), maxlen=0)


def _names(ours: str, theirs: Mapping[str, Answers], folder: Path) -> tuple[str, str]:
    """Both models' names, made different where they are not."""
    name = next((a.model for a in theirs.values()), str(folder))
    return ours, name if name != ours else f"{name} ({folder.name})"


def _about_answers(lm: "LanguageModel", max_tokens: int, answers: Sequence[Answers]) -> list[str]:
    """How the model was asked, and what was cut short."""
    finish = [f for a in answers for f in a.finish]
    form = (
        f"the chat form {lm.chat_form.name}" if lm.chat_form else "no chat form: the texts of the turns are continued"
    )
    notes = [f"answered with {form}, at most {max_tokens} new tokens a turn"]
    if n := finish.count("length"):
        notes.append(
            f"{n} of {len(finish)} answers were cut short, at the most new tokens or because the context is full"
        )
    if n := finish.count(NO_ROOM):
        notes.append(f"{n} of {len(finish)} answers are empty because the context was full")
    return notes


def _about_judge(judge: Judge) -> list[str]:
    """Who judged, and every verdict that is missing."""
    endpoint, counts = judge.endpoint, judge.counts
    notes = [f"judged by {endpoint.model} at {endpoint.address}"]
    total = sum(counts.values())
    if counts["nonsense"]:
        notes.append(f"{counts['nonsense']} of {total} verdicts could not be read and count as none")
    if counts["unanswered"]:
        why = judge.why_gone or judge.last_reason
        notes.append(f"{counts['unanswered']} of {total} verdicts did not come ({why}); the same command asks again")
    if endpoint.left_out:
        notes.append(f"the judge's server does not take {' and '.join(endpoint.left_out)}, so it was asked without")
    return notes
