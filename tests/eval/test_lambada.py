import math

import pytest

from coterie.engine.score import Score
from coterie.errors import DataError
from coterie.eval.lambada import Lambada
from coterie.eval.task import Choose


def test_the_last_word_by_likelihood() -> None:
    task = Lambada()
    rows = [{"context": "I saw the", "answer": "sea"}, {"context": "We", "answer": "go"}]
    items = task.items(rows, shots=None, seed=0)
    assert items[0].asks == (Choose("I saw the", (" sea",)),)
    found = [[[Score(math.log(0.5), True, 1, 4)]], [[Score(math.log(0.125), False, 2, 3)]]]
    judged = [(item, task.judge(item, answers)) for item, answers in zip(items, found, strict=True)]
    acc, perplexity = task.metrics(judged)
    assert (acc.name, acc.value, acc.n) == ("acc", 0.5, 2)
    # the mean log-probability is that of 1/4; its error is log 4 / 2
    assert (perplexity.name, perplexity.value) == ("perplexity", pytest.approx(4.0))
    assert perplexity.stderr == pytest.approx(4 * math.log(4) / 2)


def test_a_broken_row_is_named() -> None:
    with pytest.raises(DataError, match="f, line 2: there is no field 'answer'"):
        Lambada().check({"context": "a"}, "f, line 2")
