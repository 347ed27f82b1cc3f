"""Prompts and scores against lm-eval's own task files, read from where it is installed, on planted texts."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import DataError
from coterie.eval.bbh import Bbh
from coterie.eval.generation_tasks import Gsm8k, Math, Mgsm, NqOpen, Squad, Svamp, TriviaQA, Xquad
from coterie.eval.task import Generate, Row, Task
from coterie.eval.written import Written

GSM = {"question": "2 + 2?", "solution": "2+2=<<2+2=4>>4\n#### 1,004", "answer": "1004"}
SUM = {"question": "2 + 2?", "answer": "1004", "lang": "de"}
NUMBERS = [
    "#### 1004",
    " It is $1,004.",
    "1004 eggs",
    "#### 1,004.\nQ",
    "no",
    "",
    "1004 then 5",
    "#### x 1004",
    "-1004",
]
TRIVIA = {"question": "Which vegetable", "answer": "Onion", "aliases": ["Onion skins", "L'oignon"]}
SPANS = [
    " Onion",
    "onion!",
    " the Onion",
    "Onions",
    "",
    "  l'oignon",
    "The onion skins",
    "an onion ",
    "Onion .",
    "Onion\t",
]
OPEN = {"question": "who", "answers": ["The Onion", "an onion"]}
HARD = {"task": "boolean_expressions", "question": "not True is", "answer": "False"}
TRUTHS = ["False", "false.", "False\n\n", '"False"', "True", "", "False, so"]


class Harness:
    """One of lm-eval's task files: its prompt, its filters, its exact match."""

    def __init__(self, path: str):
        if find_spec("lm_eval") is None:
            pytest.skip("lm-eval is not installed")
        yaml = pytest.importorskip("yaml")
        loader = type("Loader", (yaml.SafeLoader,), {})
        loader.add_multi_constructor("!", lambda loader, suffix, node: None)
        spec = find_spec("lm_eval")
        assert spec is not None and spec.origin is not None
        self.fields: dict[str, Any] = {}
        path = str(Path(spec.origin).parent / "tasks" / path)
        found = yaml.load(Path(path).read_text(), loader)
        if "include" in found:
            self.fields |= yaml.load((Path(path).parent / found["include"]).read_text(), loader)
        self.fields |= found

    def prompt(self, row: Row) -> str:
        from lm_eval.utils import apply_template

        text: str = self.fields.get("description", "") + apply_template(self.fields["doc_to_text"], row)
        return text

    def is_right(self, text: str, right: list[str], filter_name: str = "") -> bool:
        import lm_eval.filters  # noqa: F401 registers them
        from lm_eval.api.metrics import exact_match_hf_evaluate
        from lm_eval.api.registry import get_filter

        for chain in self.fields.get("filter_list", []):
            if chain["name"] == filter_name:
                first = chain["filter"][0]
                options = {name: value for name, value in first.items() if name != "function"}
                text = next(iter(get_filter(first["function"])(**options).apply([[text]], [{}])))[0]
        names = ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
        options = {name: value for name, value in self.fields["metric_list"][0].items() if name in names}
        return any(exact_match_hf_evaluate([text], [answer], **options)["exact_match"] > 0 for answer in right)


def prompt_of(task: Task, row: Row) -> str:
    task.check(row, "f, line 1")
    (item,) = task.items([row], shots=0, seed=0)
    assert isinstance(item.asks[0], Generate) and isinstance(item.asks[0].prompt, str)
    return item.asks[0].prompt


def stops_of(task: Written, row: Row) -> list[str]:
    return [*task.stops(row)]


def test_gsm8k() -> None:
    harness = Harness("gsm8k/gsm8k.yaml")
    assert prompt_of(Gsm8k(), GSM) == harness.prompt(GSM)
    assert stops_of(Gsm8k(), GSM) == harness.fields["generation_kwargs"]["until"]
    for text in NUMBERS:
        scores = Gsm8k().score(text, GSM)
        assert scores["strict_match"] == harness.is_right(text, [GSM["solution"]], "strict-match"), text
        assert scores["flexible_extract"] == harness.is_right(text, [GSM["solution"]], "flexible-extract"), text


@pytest.mark.parametrize("language", ["en", "fr", "de", "es"])
def test_mgsm(language: str) -> None:
    harness, row = Harness(f"mgsm/direct/mgsm_direct_{language}.yaml"), {**SUM, "lang": language}
    assert prompt_of(Mgsm(), row) == harness.prompt({"question": row["question"], "answer": None})
    assert stops_of(Mgsm(), row) == harness.fields["generation_kwargs"]["until"]
    for text in NUMBERS:
        expected = harness.is_right(text, ["1004"], "flexible-extract")
        assert Mgsm().score(text, row) == {"flexible_extract": expected} == Svamp().score(text, row), text


def test_triviaqa() -> None:
    harness = Harness("triviaqa/default.yaml")
    assert prompt_of(TriviaQA(), TRIVIA) == harness.prompt(TRIVIA)
    assert stops_of(TriviaQA(), TRIVIA) == harness.fields["generation_kwargs"]["until"]
    for text in SPANS:
        expected = harness.is_right(text, [TRIVIA["answer"], *TRIVIA["aliases"]], "remove_whitespace")
        assert TriviaQA().score(text, TRIVIA) == {"exact_match": expected}, text


def test_nq_open() -> None:
    harness = Harness("nq_open/nq_open.yaml")
    assert prompt_of(NqOpen(), OPEN) == harness.prompt(OPEN)
    assert stops_of(NqOpen(), OPEN) == harness.fields["generation_kwargs"]["until"]
    assert NqOpen().shot(OPEN) == "Q: who?\nA: The Onion" + harness.fields["fewshot_delimiter"]
    for text in SPANS:
        expected = harness.is_right(text, OPEN["answers"], "remove_whitespace")
        assert NqOpen().score(text, OPEN) == {"exact_match": expected}, text


@pytest.mark.parametrize("name", ["boolean_expressions", "tracking_shuffled_objects_five_objects", "word_sorting"])
def test_bbh(name: str) -> None:
    harness, row = Harness(f"bbh/zeroshot/{name}.yaml"), {**HARD, "task": name}
    assert prompt_of(Bbh(), row) == harness.prompt({"input": row["question"]})
    assert stops_of(Bbh(), row) == harness.fields["generation_kwargs"]["until"]
    for text in TRUTHS:
        assert Bbh().score(text, row)["exact_match"] == harness.is_right(text, ["False"]), text


def test_bbh_leaves_spaces_around_an_answer_out_because_many_tokenizers_begin_with_one() -> None:
    assert Bbh().score(" False", HARD) == {"exact_match": 1.0, "flexible_extract": 1.0}


@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_xquad_asks_in_the_language_of_the_row(language: str) -> None:
    row = {"context": "c", "question": "q", "answers": ["x"], "lang": language}
    assert prompt_of(Xquad(), row) == Harness(f"xquad/xquad_{language}.yaml").prompt(row)


def test_squad_takes_the_best_of_the_right_answers() -> None:
    row = {"context": "c", "question": "q", "answers": ["x", "the blue cat"]}
    assert Squad().score(" a blue dog", row) == {"f1": 0.5, "exact_match": 0.0}
    assert Squad().score(" Blue cat.", row) == {"f1": 1.0, "exact_match": 1.0}


def test_math_reads_a_box_and_needs_one() -> None:
    row = {"problem": "half of 1?", "solution": r"It is $\boxed{\dfrac12}$.", "subject": "Algebra"}
    assert prompt_of(Math(), row) == "Problem:\nhalf of 1?\n\nSolution:" and Math().group(row) == "Algebra"
    assert Math().score(r"\boxed{0.5}", row) == {"exact_match": 1.0} == Math().score("so 1/2 is 0.5", row)
    assert Math().score(r"\boxed{2}", row) == {"exact_match": 0.0}
    assert Math().score("5", {**row, "answer": "5"}) == {"exact_match": 1.0}
    with pytest.raises(DataError, match=r"line 1: solution has no .*boxed"):
        Math().check({"problem": "p", "solution": "s"}, "f, line 1")


def test_an_answer_that_is_no_number_is_out_of_range() -> None:
    with pytest.raises(DataError, match=r"line 1: answer is 'many', expected a number"):
        Gsm8k().check({**GSM, "answer": "many"}, "f, line 1")
    with pytest.raises(DataError, match="answers"):
        Squad().check({"context": "c", "question": "q", "answers": []}, "f, line 1")
