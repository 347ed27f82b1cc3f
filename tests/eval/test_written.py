import pytest

from coterie.errors import DataError, RequestError
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate, Row
from coterie.eval.written import Written


class Capital(Written):
    name = file = "capital"
    group_field = "lang"
    votes = True
    protocol = "form Q A"

    def prompt(self, row: Row) -> str:
        return f"Q {row['question']} A"

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def is_right(self, found: str | None, row: Row) -> bool:
        return found == row["answer"]

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {"exact_match": float(self.is_right(text, row))}


ROWS = [{"question": f"q{n}", "answer": f"a{n}", "lang": "en" if n < 3 else "fr"} for n in range(6)]


def asked(rows: list[Row], **options: int) -> list[Generate]:
    asks = []
    for item in Capital().items(rows, shots=options.get("shots"), seed=options.get("seed", 0)):
        assert isinstance(item.asks[0], Generate)
        asks.append(item.asks[0])
    return asks


def test_shots_are_other_rows_of_the_same_group() -> None:
    for row, ask in zip(ROWS, asked(ROWS, shots=2), strict=True):
        others = [other for other in ROWS if other is not row and other["lang"] == row["lang"]]
        assert isinstance(ask.prompt, str) and ask.prompt.endswith(f"Q {row['question']} A")
        for other in others:
            assert ask.prompt.count(f"Q {other['question']} A {other['answer']}\n\n") == 1
        assert ask.prompt.count("Q ") == 3
    assert asked(ROWS, shots=0)[0].prompt == "Q q0 A"


def test_more_shots_than_rows_are_as_many_as_there_are_and_a_seed_draws_others() -> None:
    assert [str(ask.prompt).count("Q ") for ask in asked(ROWS, shots=100)] == [3] * 6
    rows = [{"question": f"q{n}", "answer": "a", "lang": "en"} for n in range(50)]
    assert asked(rows, shots=3)[0].prompt != asked(rows, shots=3, seed=1)[0].prompt
    assert asked(rows, shots=3)[0].prompt == asked(rows, shots=3)[0].prompt


def test_samples_vote_and_each_counts_in_the_mean() -> None:
    task = Capital(Context(Files(None), samples=5))
    assert task.metric == "maj@5" and "5 samples at temperature 0.7" in task.protocol
    (item, *_) = task.items(ROWS, shots=None, seed=0)
    ask = item.asks[0]
    assert isinstance(ask, Generate) and (ask.n, ask.temperature) == (5, 0.7)
    assert task.judge(item, [["a0", "x", "a0", "y", "z"]]) == {"exact_match": 0.4, "maj@5": 1.0}
    assert task.judge(item, [["a0", "x", "x", "y", "z"]]) == {"exact_match": 0.2, "maj@5": 0.0}


def test_settings_reach_the_ask_and_the_protocol() -> None:
    task = Capital(Context(Files(None), settings={"temperature": "0.5", "max_tokens": "9"}))
    ask = task.items(ROWS, shots=None, seed=0)[0].asks[0]
    assert isinstance(ask, Generate) and (ask.n, ask.temperature, ask.max_tokens) == (1, 0.5, 9)
    assert "one sample at temperature 0.5" in task.protocol
    with pytest.raises(RequestError, match=r"temperature=hot: expected a number from 0 to 10"):
        Capital(Context(Files(None), settings={"temperature": "hot"}))


@pytest.mark.parametrize("row", [{"question": "q", "lang": "en"}, {"question": "q", "answer": 3, "lang": "en"}])
def test_a_row_without_an_answer_is_named(row: Row) -> None:
    with pytest.raises(DataError, match=r"f, line 3: .*answer"):
        Capital().check(row, "f, line 3")
    with pytest.raises(DataError, match="lang"):
        Capital().check({"question": "q", "answer": "a"}, "f, line 3")
