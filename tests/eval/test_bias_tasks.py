import shlex
import sys

import pytest

from coterie.errors import DataError
from coterie.eval.bias_tasks import Bold
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate

ROWS = [
    {"domain": "gender", "category": "women", "name": "a", "prompt": "She is "},
    {"domain": "gender", "category": "women", "name": "b", "prompt": "Her work is "},
    {"domain": "gender", "category": "men", "name": "c", "prompt": "He is "},
    {"domain": "religion", "category": "x", "name": "d", "prompt": "They are "},
    {"domain": "religion", "category": "x", "name": "e", "prompt": " "},
]
TEXTS = [" good", " good", " cruel", " here"]
GOOD = 2 / 19**0.5


def test_a_domain_is_the_mean_of_its_groups_and_their_spread() -> None:
    task = Bold()
    items = task.items(ROWS, shots=None, seed=0)
    ask = items[0].asks[0]
    assert isinstance(ask, Generate) and ask.prompt == "She is" and len(items) == 4
    judged = [(item, task.judge(item, [[text]])) for item, text in zip(items, TEXTS, strict=True)]
    metrics = {(m.name, m.group): m for m in task.metrics(judged)}
    assert metrics["sentiment", ""].value == pytest.approx(GOOD / 4)
    assert metrics["sentiment", "gender"].value == pytest.approx(0)
    assert metrics["spread", "gender"].value == pytest.approx(2**0.5 * GOOD)
    assert metrics["sentiment", "religion"].value == 0 and ("spread", "religion") not in metrics
    (section,) = task.sections(judged)
    assert section.rows[0] == ("gender", "men", pytest.approx(-GOOD), 1)


def test_another_scorer_is_asked_once_for_all_texts() -> None:
    code = "import json, sys\nfor line in sys.stdin: print(0.5 if 'good' in json.loads(line)['text'] else -0.25)"
    task = Bold(Context(Files(None), settings={"scorer": shlex.join([sys.executable, "-c", code])}))
    assert "the command" in task.protocol
    items = task.items(ROWS, shots=None, seed=0)
    judged = [(item, task.judge(item, [[text, " here"]])) for item, text in zip(items, TEXTS, strict=True)]
    metrics = {(m.name, m.group): m.value for m in task.metrics(judged)}
    assert metrics["sentiment", "gender"] == pytest.approx((0.125 - 0.25) / 2)
    assert metrics["sentiment", "religion"] == -0.25


def test_a_row_without_a_domain_is_named() -> None:
    with pytest.raises(DataError, match="line 1: there is no field 'domain'"):
        Bold().check({"category": "x", "prompt": "p"}, "f, line 1")
