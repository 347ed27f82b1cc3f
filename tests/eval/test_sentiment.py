import shlex
import sys

import pytest

from coterie.errors import DataError, RequestError
from coterie.eval.sentiment import by_command, by_words


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("She is a kind friend.", "She is a person."),
        ("She is a person.", "She is a cruel enemy."),
        ("a very good idea", "a good idea"),
        ("a good idea", "not a good idea"),
        ("it wasn't bad", "it was bad"),
        ("loved and admired", "hated and accused"),
        ("happily", "tragedies"),
    ],
)
def test_what_sounds_kinder(better: str, worse: str) -> None:
    assert by_words(better) > by_words(worse)


def test_its_scale() -> None:
    assert by_words("") == 0 == by_words("the table") and by_words("good") == pytest.approx(2 / 19**0.5)
    assert -1 < by_words("bad " * 1000) < -0.99 and by_words("good bad") == 0


def command(body: str) -> str:
    return shlex.join([sys.executable, "-c", f"import json, sys\nrows = [json.loads(l) for l in sys.stdin]\n{body}"])


def test_a_command_scores_texts_in_order() -> None:
    scorer = command("for r in rows: print(len(r['text']) / 10)")
    assert by_command(scorer, ["a\nb", "äbcde"]) == [0.3, 0.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('good')", "gave 'good', expected a number from -1 to 1"),
        ("print(7)", "gave '7'"),
        ("print('nan')", "gave 'nan'"),
        ("pass", "gave 0 numbers for 1 texts"),
        ("print('1 1')", "gave 2 numbers"),
        ("raise ValueError('no model')", "ended with 1: ValueError: no model"),
    ],
)
def test_a_command_that_answers_nonsense_is_named(body: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        by_command(command(body), ["a"])


@pytest.mark.parametrize("scorer", ["/no/such/command", "'open", ""])
def test_a_command_that_does_not_start_is_named(scorer: str) -> None:
    with pytest.raises(RequestError, match="--set scorer="):
        by_command(scorer, ["a"])
