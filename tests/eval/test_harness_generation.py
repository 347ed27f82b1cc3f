"""Rows as the harness's own generation tasks read them."""

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from coterie.eval.harness_generation import GENERATION

ROWS = {
    "gsm8k": {"question": "2 + 2?", "solution": "2 + 2 = 4\n#### 4"},
    "mgsm": {"question": "2 + 2?", "answer": "4"},
    "triviaqa": {"question": "Who?", "answer": "Ann", "aliases": ["Anna"]},
    "nq_open": {"question": "who", "answers": ["Ann", "Anna"]},
    "bbh": {"question": "True or False is", "answer": "True"},
}


def test_rows_get_the_names_that_the_included_files_read() -> None:
    adapted = {name: GENERATION[name].adapt(row) for name, row in ROWS.items()}
    assert adapted["gsm8k"] == {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
    assert adapted["mgsm"] == {"question": "2 + 2?", "answer": None, "answer_number": "4"}
    assert adapted["triviaqa"]["answer"] == {"aliases": ["Ann", "Anna"]}
    assert adapted["nq_open"]["answer"] == ["Ann", "Anna"]
    assert adapted["bbh"] == {"input": "True or False is", "target": "True"}


def test_the_included_files_are_there() -> None:
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    parts = {"mgsm": "fr", "bbh": "word_sorting"}
    for name, form in GENERATION.items():
        assert not form.include or (tasks / form.include.format(part=parts.get(name, ""))).is_file(), name


def test_reading_is_asked_in_the_language_of_the_text() -> None:
    of_part = GENERATION["xquad"].of_part
    assert of_part is not None and str(of_part("de")["doc_to_text"]).endswith("Frage: {{question}}\n\nAntwort:")
    assert of_part("en") == {}
