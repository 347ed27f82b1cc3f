"""Functions that task files of the harness name: by hand, and that fetching one registers coterie."""

import math

import pytest

pytest.importorskip("lm_eval")

from coterie.eval import harness_forms
from coterie.eval.harness_forms import probability_of_true, span_scores

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_share_of_true_answers() -> None:
    doc = {"mc2_targets": {"labels": [1, 0, 1]}}
    results = [(math.log(0.2), False), (math.log(0.6), True), (math.log(0.2), False)]
    assert probability_of_true(doc, results)["acc"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "exact", "f1"),
    [("The Eiffel Tower!", 1.0, 1.0), ("eiffel", 0.0, 2 / 3), ("Louvre", 0.0, 0.0), ("", 0.0, 0.0)],
)
def test_words_in_common_with_the_first_reference(text: str, exact: float, f1: float) -> None:
    found = span_scores({"answers": ["Eiffel tower", "Louvre"]}, [text])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_fetching_the_documents_registers_the_model() -> None:
    from lm_eval.api.registry import model_registry

    rows = [1, 2]
    assert harness_forms.documents(rows) is rows
    assert "coterie" in model_registry
    with pytest.raises(AttributeError, match="nothing"):
        _ = harness_forms.nothing
