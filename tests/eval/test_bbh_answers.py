"""Planted texts, and where lm-eval is installed its own filters on the same texts and real rows."""

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from coterie.eval.bbh_answers import flexible
from coterie.eval.rows import Files

SWAPS = "Who has it?\nOptions:\n(A) Ann\n(B) Anna Lee\n(C) Bob"


@pytest.mark.parametrize(
    ("text", "task", "found"),
    [
        ("it is (C), not (A)", "date_understanding", "(C)"),
        ("I say anna lee.", "date_understanding", "(B)"),
        ("The answer is: B", "date_understanding", "(B)"),
        ("nobody", "date_understanding", None),
        ("not False but True", "boolean_expressions", "False"),
        ("false", "boolean_expressions", None),
        ("It is not plausible", "sports_understanding", "no"),
        ("Plausible", "sports_understanding", "yes"),
        ("so -12 or 7", "multistep_arithmetic_two", "-12"),
        ("There are twenty one apples and two pears", "object_counting", "21"),
        ("one hundred and five", "object_counting", "105"),
        ("none", "object_counting", None),
        (" ] ) >", "dyck_languages", "] ) >"),
        ("cat dog ant cat", "word_sorting", "dog ant cat"),
    ],
)
def test_the_first_thing_that_has_the_form_of_an_answer(text: str, task: str, found: str | None) -> None:
    question = "Sort: List: dog cat ant" if task == "word_sorting" else SWAPS
    assert flexible(text, task, question) == found


def test_a_question_without_what_its_subtask_needs_has_no_answer() -> None:
    assert flexible("x", "word_sorting", "Sort") is None and flexible("x", "date_understanding", "When?") is None


def filter_of(task: str) -> Any:
    yaml = pytest.importorskip("yaml")
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm-eval is not installed")
    folder = Path(spec.origin).parent / "tasks" / "bbh" / "zeroshot"
    utils = types.ModuleType("bbh_utils")
    sys.modules["bbh_utils"] = utils
    exec((folder / "utils.py").read_text(), utils.__dict__)
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda loader, suffix, node: node.value)
    chains = yaml.load((folder / f"{task}.yaml").read_text(), loader)["filter_list"]
    (first,) = [chain["filter"][0] for chain in chains if chain["name"] == "flexible-extract"]
    kind = getattr(utils, "RegexFilter" if first["function"] == "regex" else first["function"].partition(".")[2])
    return kind(**{name: value for name, value in first.items() if name != "function"})


@pytest.mark.skipif("COTERIE_DATA" not in os.environ, reason="COTERIE_DATA names no folder")
@pytest.mark.filterwarnings("ignore")
def test_it_finds_what_the_harness_finds() -> None:
    rows = Files(Path(os.environ["COTERIE_DATA"])).rows("bbh").rows
    for task in sorted({row["task"] for row in rows} - {"multistep_arithmetic_two", "object_counting"}):
        theirs, of_task = filter_of(task), [row for row in rows if row["task"] == task][::40]
        for row in of_task:
            texts = [other["answer"] for other in of_task] + ["", " no", "Yes, (B).", "it: A", row["question"][-40:]]
            texts += ["so " + row["question"].split("(A)")[-1][:30].lower(), "True or False", "not plausible"]
            found = theirs.apply([texts], [{"input": row["question"]}])[0]
            for text, expected in zip(texts, found, strict=True):
                ours = flexible(text, row["task"], row["question"])
                assert (ours or "") == ("" if expected == "[invalid]" else expected), (task, text, row["question"])
