import math
from collections.abc import Callable

import pytest
import torch

from coterie.errors import DataError
from coterie.eval.text_score import Text, TextScore, bits_per_byte, by_domain, encode, perplexity, score_texts
from coterie.eval.windows import Reader
from coterie.model import Transformer


class Letters:
    """One id a letter; nothing for a space."""

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [1] * bos + [ord(c) - ord("a") + 3 for c in text if c != " "]


@pytest.fixture(scope="module")
def reader(make_model: Callable[..., Transformer]) -> Reader:
    return Reader(make_model(vocab_size=32))


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(make_model: Callable[..., Transformer]) -> None:
    model = make_model(vocab_size=32)
    with torch.no_grad():
        model.tensors()["head"].zero_()
    texts = [Text("x", tuple(range(3, 23)), 40), Text("y", tuple(range(3, 13)), 20)]
    scores = score_texts(Reader(model), texts, context=8, stride=4, prefix=1)
    assert perplexity(scores).value == pytest.approx(32)
    assert bits_per_byte(scores).value == pytest.approx(5 / 2)
    assert bits_per_byte(scores).stderr == pytest.approx(0, abs=1e-6)


def test_every_token_of_every_text_once_and_progress_to_the_end(reader: Reader) -> None:
    texts = [Text("x", tuple([5, 9, 4] * 30), 100), Text("y", (7, 8), 2)]
    seen: list[tuple[int, int]] = []
    scores = score_texts(reader, texts, context=32, stride=16, prefix=1, progress=lambda d, t: seen.append((d, t)))
    assert [sum(s.tokens) for s in scores] == [90, 2] and seen[-1] == (92, 92)
    assert scores[0].tokens == [32, 16, 16, 16, 10]
    assert list(by_domain(scores)) == ["x", "y"] and by_domain(scores)["y"] == [scores[1]]


def test_a_text_shorter_than_the_window_is_one_short_window(reader: Reader) -> None:
    text = Text("x", (5, 9, 4), 6)
    short, exact = (score_texts(reader, [text], context=c, stride=2, prefix=1)[0] for c in (1000, 3))
    assert short.tokens == [3] and short.nats == pytest.approx(exact.nats, rel=1e-5)


def test_one_text_has_the_interval_of_its_windows() -> None:
    score = TextScore("x", 40, nats=[10.0, 14.0, 12.0, 12.0], tokens=[5, 5, 5, 5])
    assert bits_per_byte([score]).value == pytest.approx(48 / math.log(2) / 40)
    assert perplexity([score]).value == pytest.approx(math.exp(48 / 20))
    assert perplexity([score]).stderr is not None
    assert perplexity([TextScore("x", 4, [1.0], [2])]).stderr is None


def test_empty_texts_are_left_out_and_nothing_else_is_an_error() -> None:
    assert encode(Letters(), [("x", ""), ("x", " "), ("y", "ab é".removesuffix("é"))], "f") == [  # type: ignore[arg-type]
        Text("y", (3, 4), 3)
    ]
    with pytest.raises(DataError, match=r"notes\.txt has no text to score"):
        encode(Letters(), [("x", ""), ("x", "  ")], "notes.txt")  # type: ignore[arg-type]
