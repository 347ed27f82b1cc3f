from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.api import LanguageModel
from coterie.errors import DataError
from coterie.eval.journal import Journal
from coterie.eval.mt_bench_answers import NO_ROOM, Conversation, answer_all, read_conversation
from coterie.tokenizer.chat import CHAT_FORMS

ROW = {"question_id": 81, "category": "writing", "turns": ["Say a.", "Say b."], "reference": ["a"]}


@pytest.fixture(scope="module")
def lm(make_model: Callable, byte_tokenizer: object) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer, name="tiny")


def talks(n: int, category: str = "math", turns: tuple[str, ...] = ("Say a.", "Say b.")) -> list[Conversation]:
    return [Conversation(str(i), category, (f"{i}: {turns[0]}", *turns[1:]), ("",) * len(turns)) for i in range(n)]


def answered(lm: LanguageModel, conversations: list[Conversation], path: Path | None = None, **options: int):
    with Journal(path) as journal:
        return answer_all(lm, conversations, journal, **{"max_tokens": 8, **options})


def test_a_row() -> None:
    c = read_conversation(ROW, "f, line 1")
    assert c == Conversation("81", "writing", ("Say a.", "Say b."), ("a", "")) and c.temperature == 0.7
    assert read_conversation({**ROW, "category": "stem"}, "").temperature == 0.1
    assert read_conversation({**ROW, "category": "coding"}, "").temperature == 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turns": []}, "turns is"),
        ({"turns": ["a", 3]}, "turns is"),
        ({"turns": ["a", " "]}, "turns must be"),
        ({"turns": ["a"] * 9}, "turns must be"),
        ({"turns": None}, "turns is None"),
        ({"reference": ["a", "b", "c"]}, "reference has 3 texts for 2 turns"),
        ({"reference": "a"}, "reference is 'a'"),
        ({"category": 3}, "category is 3"),
        ({"question_id": None}, "question_id is None"),
        ({"question_id": True}, "question_id is True"),
    ],
)
def test_wrong_rows(change: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=f"^f, line 1: {said}"):
        read_conversation({**ROW, **change}, "f, line 1")


def test_missing_fields() -> None:
    for name in ("turns", "category", "question_id"):
        with pytest.raises(DataError, match=name):
            read_conversation({k: v for k, v in ROW.items() if k != name}, "f, line 1")


def test_answers_are_what_the_model_says_alone_turn_by_turn(lm: LanguageModel) -> None:
    found = answered(lm, talks(5))
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    for c in talks(5):
        first = lm.generate(c.turns[0], max_tokens=8).text
        second = lm.generate("\n".join(t for t in (c.turns[0], first, c.turns[1]) if t), max_tokens=8).text
        assert found[c.id].turns == [first, second] and found[c.id].model == "tiny"


def test_with_a_chat_form(lm: LanguageModel, make_model: Callable, byte_tokenizer: object) -> None:
    chatty = LanguageModel(make_model(), byte_tokenizer, CHAT_FORMS["mistral-v1"], name="chatty")
    (c,) = talks(1)
    found = answered(chatty, [c])["0"]
    talk = [{"role": "user", "content": c.turns[0]}]
    first = chatty.chat(talk, max_tokens=8).text
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": c.turns[1]}]
    assert found.turns == [first, chatty.chat(talk, max_tokens=8).text]


def test_warm_categories_depend_on_the_seed_and_on_nothing_else(lm: LanguageModel) -> None:
    warm = talks(3, "writing")
    one, again, other = (answered(lm, warm, seed=s) for s in (0, 0, 1))
    assert one == again and one["0"].turns != other["0"].turns
    assert answered(lm, warm[1:2])["1"] == one["1"]
    cold = talks(2)
    assert answered(lm, cold, seed=0)["0"].turns == answered(lm, cold, seed=1)["0"].turns


def test_an_interrupted_run_goes_on(lm: LanguageModel, tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", []
    whole = answered(lm, talks(6), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    again = answered(lm, talks(6), path, progress=lambda d, t: seen.append((d, t)))
    assert again == whole and seen == [(4, 6), (5, 6), (6, 6)]
    assert len(path.read_bytes().splitlines()) == 6


def test_other_settings_are_other_answers(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    answered(lm, talks(1), path)
    assert answered(lm, talks(1), path, max_tokens=3)["0"].n_tokens == [3, 3]
    assert len(path.read_bytes().splitlines()) == 2


def test_room_is_shared_by_the_turns_and_a_full_context_is_said(lm: LanguageModel) -> None:
    fits = answered(lm, talks(1), max_tokens=1000)["0"]
    assert fits.finish == ["length", "length"] and 80 < fits.n_tokens[0] < 128 and sum(fits.n_tokens) < 250
    long = answered(lm, talks(1, turns=("x" * 300, "Say b.")), max_tokens=1000)["0"]
    assert long.turns == ["", ""] and long.finish == [NO_ROOM, NO_ROOM]
