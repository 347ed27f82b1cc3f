import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.engine.score import Score
from coterie.errors import RequestError
from coterie.eval.needle import Hidden, Needle, longest_that_fits
from coterie.eval.rows import Files
from coterie.eval.run import evaluate
from coterie.eval.task import Choose, Context, Generate, Item
from coterie.model import Transformer
from coterie.tokenizer import Tokenizer


class Dots(Needle):
    """Hides "a" among "b" and "c" after dots: one token each."""

    name, protocol, longest_value = "dots", "p", "a"

    def hide(self, draw: random.Random, depth: float, excess: Callable[[str], int]) -> Hidden | None:
        n = longest_that_fits(lambda n: "." * n + f"{depth:g}", excess, 1)
        return None if n is None else Hidden("." * n + f"{depth:g}", "a", ("b", "c"), 0.25)

    def spell(self, value: str) -> str:
        return value

    def read(self, written: str) -> str | None:
        return written[:1]


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer)


def make(lm: LanguageModel, **settings: str) -> Dots:
    task = Dots(Context(Files(None), settings=settings))
    task.bind(lm)
    return task


@pytest.mark.parametrize("each", [1, 3, 20])
@pytest.mark.parametrize("room", [1, 7, 64, 999])
def test_the_longest_that_fits(each: int, room: int) -> None:
    asked: list[int] = []

    def excess(text: str) -> int:
        asked.append(1)
        return len(text) - room

    found = longest_that_fits(lambda n: "x" * (each * n + n // 100), excess, 1)
    expected = [n for n in range(1, 1001) if each * n + n // 100 <= room]
    assert found == (expected[-1] if expected else None)
    assert len(asked) <= 12


def test_prompts_fill_each_length_with_its_answer(lm: LanguageModel) -> None:
    items = make(lm, trials="2", depths="0,50").items([], shots=None, seed=0)
    assert [item.id for item in items[:4]] == ["32/0/0", "32/50/0", "32/0/1", "32/50/1"]
    assert len(items) == 4 * 2 * 2 and len({item.id for item in items}) == 16
    for item in items:
        choose, generate = item.asks
        assert isinstance(choose, Choose) and isinstance(generate, Generate) and choose.context == generate.prompt
        assert choose.continuations == ("a", "b", "c")
        n = len(lm.tokenizer.encode(choose.context, bos=True))
        assert n + generate.max_tokens == item.row["length"] <= 256


def test_an_answer_and_its_rank() -> None:
    def judge(logprobs: list[float], written: str) -> dict[str, float]:
        item = Item("i", (), {"value": "a"})
        return Dots().judge(item, [[Score(lp, False, 1, 1) for lp in logprobs], [written]])

    assert judge([-1, -2, -3], "abc") == {"exact": 1, "ranked": 1, "rank": 1}
    assert judge([-2, -1, -3], "b") == {"exact": 0, "ranked": 0, "rank": 2}
    assert judge([-2, -2, -3], "") == {"exact": 0, "ranked": 0.5, "rank": 1.5}


def test_figures_over_all_by_length_and_by_depth_with_chance(lm: LanguageModel) -> None:
    task = make(lm, trials="2", depths="0,25,100", lengths="64,32")
    judged: list[Any] = []
    for item in task.items([], shots=None, seed=0):
        right = float(item.row["depth"] == 100)
        judged.append((item, {"exact": right, "ranked": right, "rank": 3 - 2 * right}))
    by_name = {(m.group, m.name): m for m in task.metrics(judged)}
    assert list(dict.fromkeys(group for group, _ in by_name)) == [
        "", "32 tokens", "64 tokens", "0 % deep", "25 % deep", "100 % deep",
    ]  # fmt: skip
    assert by_name["", "exact"].value == pytest.approx(1 / 3) and by_name["", "exact"].chance == 0.25
    assert by_name["100 % deep", "ranked"].value == 1 and by_name["", "ranked"].chance == pytest.approx(1 / 3)
    assert by_name["0 % deep", "rank"].value == 3 and by_name["", "rank"].chance == 2
    assert [s.key for s in task.sections(judged)] == ["dots-exact", "dots-ranked"]


def test_lengths_that_hold_no_prompt(lm: LanguageModel, make_model: Any, byte_tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="--set lengths=300: expected a whole number from 32 to 256"):
        make(lm, lengths="64,300").items([], shots=None, seed=0)
    tiny = LanguageModel(make_model(max_position_embeddings=16), byte_tokenizer)
    with pytest.raises(RequestError, match="dots needs longer prompts than the model's context of 16 tokens"):
        make(tiny).items([], shots=None, seed=0)


def test_a_whole_run_reads_the_object_of_a_trial_once_and_goes_on_where_it_stopped(
    make_model: Any, byte_tokenizer: Any, tmp_path: Path
) -> None:
    lm = LanguageModel(make_model(max_position_embeddings=1024), byte_tokenizer, name="tiny")
    settings = {"lengths": "512,1024", "trials": "2", "depths": "0,100"}
    first, again = (evaluate(lm, ["long-context"], run_dir=tmp_path / "run", settings=settings).tasks for _ in range(2))
    assert [task.name for task in first] == ["passkey", "retrieval"]
    for once, resumed in zip(first, again, strict=True):
        assert once.n_items == 8 and once.n_cut == 0 and [s.plots[0].kind for s in once.sections] == ["heatmap"] * 2
        assert resumed.n_resumed == 8 and resumed.n_tokens == 0 and resumed.metrics == once.metrics
        assert {m.group for m in once.metrics} >= {"", "512 tokens", "1024 tokens", "0 % deep", "100 % deep"}
    every_prompt_twice = 2 * 2 * 2 * (512 + 1024)
    assert first[1].n_tokens < 0.8 * every_prompt_twice
