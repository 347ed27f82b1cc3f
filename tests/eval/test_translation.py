import builtins
from typing import Any

import pytest

from coterie.errors import DataError, RequestError, ResourceError
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate
from coterie.eval.translation import Ntrex

ROWS = [
    {
        "doc": "d",
        "line": n,
        "en": f"The cat number {n} sleeps",
        "fr": f"Le chat numéro {n} dort",
        "de": "x",
        "it": "y",
        "es": "z",
    }
    for n in range(6)
]


def of(pairs: str) -> Ntrex:
    return Ntrex(Context(Files(None), settings={"pairs": pairs}))


def test_each_direction_asks_every_row() -> None:
    items = of("en-fr,fr-en").items(ROWS, shots=1, seed=0)
    assert len(items) == 12 and len({item.id for item in items}) == 12
    ask = items[6].asks[0]
    assert isinstance(ask, Generate) and isinstance(ask.prompt, str) and ask.stop == ("\n",)
    assert ask.prompt.endswith("\n\nFrench phrase: Le chat numéro 0 dort\nEnglish phrase:")
    assert ask.prompt.count("English phrase: The cat number") == 1
    assert len(Ntrex().items(ROWS, shots=0, seed=0)) == 8 * 6


def test_a_perfect_translation_has_a_hundred_and_none_has_nothing() -> None:
    task = of("en-fr,en-de")
    items = task.items(ROWS, shots=0, seed=0)
    judged = [(item, task.judge(item, [[f" {item.row['fr']} " if item.group == "en-fr" else ""]])) for item in items]
    metrics = {(m.name, m.group): m for m in task.metrics(judged)}
    assert metrics["chrf", "en-fr"].value == pytest.approx(100) and metrics["bleu", "en-fr"].value == pytest.approx(100)
    assert metrics["chrf", "en-de"].value == 0 and metrics["chrf", ""].value == pytest.approx(50)
    assert metrics["chrf", ""].n == 12 and metrics["chrf", "en-fr"].stderr == pytest.approx(0, abs=1e-6)


def test_the_figure_is_that_of_the_corpus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    task = of("en-fr")
    items = task.items(ROWS, shots=0, seed=0)
    texts = [ROWS[n]["fr"] if n % 2 else f"Un chat {n}" for n in range(6)]
    judged = [(item, task.judge(item, [[text]])) for item, text in zip(items, texts, strict=True)]
    chrf = next(m for m in task.metrics(judged) if m.group == "en-fr" and m.name == "chrf")
    assert chrf.value == sacrebleu.corpus_chrf(texts, [[row["fr"] for row in ROWS]]).score
    assert chrf.stderr is not None and 0 < chrf.stderr < 30


def test_an_error_where_most_sentences_score_nothing() -> None:
    """Among corpora drawn from these some have a score of 0, as another type of number."""
    task = of("en-fr")
    items = task.items(ROWS, shots=0, seed=0)
    texts = ["Le chat numéro 0 dort", *(["q"] * 5)]
    judged = [(item, task.judge(item, [[text]])) for item, text in zip(items, texts, strict=True)]
    found = {metric.name: metric for metric in task.metrics(judged) if metric.group}
    assert all(metric.stderr is not None and metric.stderr > 0 for metric in found.values())


def test_mistakes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="pairs=en-xx: expected two of en, fr"):
        of("en-xx")
    with pytest.raises(DataError, match="line 1: there is no field 'fr'"):
        of("en-fr").check({"en": "a"}, "f, line 1")
    of("en-fr").check({"en": "a", "fr": "b"}, "f, line 1")
    real = builtins.__import__

    def without_sacrebleu(name: str, *more: Any, **options: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without_sacrebleu)
    with pytest.raises(ResourceError, match="pip install sacrebleu"):
        of("en-fr").items(ROWS, shots=0, seed=0)
