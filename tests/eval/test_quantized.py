import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.api import LanguageModel
from coterie.errors import RequestError
from coterie.eval.quantized import Quantized
from coterie.eval.rows import Files
from coterie.eval.task import Context
from coterie.model import Transformer
from coterie.tokenizer import Tokenizer


class Loads(Quantized):
    """Hands out the models it was given, and notes what was asked for."""

    def __init__(self, models: dict[str, LanguageModel]):
        super().__init__()
        self.models = models
        self.asked: list[tuple[str, str | None]] = []

    def load(self, source: str, device: str, quantize: str | None) -> LanguageModel:
        self.asked.append((source, quantize))
        return self.models[quantize or source]


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Transformer], byte_tokenizer: Tokenizer) -> dict[str, LanguageModel]:
    return {
        "original": LanguageModel(make_model(), byte_tokenizer, name="original"),
        "int8": LanguageModel(make_model(), byte_tokenizer, name="int8"),
        "int2": LanguageModel(make_model(seed=1), byte_tokenizer, name="int2"),
        "wide": LanguageModel(make_model(vocab_size=300), byte_tokenizer, name="wide"),
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for name, texts in {"de": ["ein Text " * 40, "kurz"], "en": ["a text " * 50, "one more, " * 33]}.items():
        lines = [json.dumps({"text": text, "lang": name}) for text in texts]
        (tmp_path / f"{name}.valid.jsonl").write_text("\n".join(lines))
    return Files(tmp_path)


def test_types_of_a_model_against_itself(models: dict[str, LanguageModel], files: Files) -> None:
    task = Loads(models)
    found = task.run(models["original"], Context(files, settings={"quantize": "int8,int2", "context": "64"}))
    values = {(m.group, m.name): m.value for m in found.metrics}
    assert task.asked == [("original", "int8"), ("original", "int2")]
    assert values["int8", "kl"] == 0 and values["int8", "top1_agreement"] == 1
    assert values["int2", "kl"] > 0.01 and values["int2", "perplexity"] != values["int2", "perplexity_original"]
    assert values["int8", "perplexity"] == values["int2", "perplexity_original"]
    assert values["int2", "kl_median"] < values["int2", "kl_p99"]
    assert [row[:2] for row in found.sections[0].rows[:3]] == [("int8", "all"), ("int8", "de"), ("int8", "en")]
    assert found.sections[0].rows[0][-1] == 4 + 64 * 3


def test_a_model_against_the_original_it_was_made_of(models: dict[str, LanguageModel], files: Files) -> None:
    task = Loads(models)
    there = task.run(models["int2"], Context(files, settings={"against": "original", "context": "64"}))
    back = task.run(models["original"], Context(files, settings={"quantize": "int2", "context": "64"}))
    assert [(m.name, m.value) for m in there.metrics] == [(m.name, m.value) for m in back.metrics]
    assert there.sections[0].sentence.startswith("KL ")
    assert list(dict.fromkeys(m.group for m in there.metrics)) == ["", "de", "en"]


def test_what_is_wrong_is_said(models: dict[str, LanguageModel], files: Files) -> None:
    for settings in ({}, {"against": "original", "quantize": "int8"}):
        with pytest.raises(RequestError, match="--set against=MODEL"):
            Loads(models).run(models["original"], Context(files, settings=settings))
    with pytest.raises(RequestError, match="original has a vocabulary of 259 and wide one of 300"):
        Loads(models).run(models["original"], Context(files, settings={"against": "wide"}))


def test_other_tokens_under_the_same_ids(models: dict[str, LanguageModel], files: Files) -> None:
    class Shifted:
        def piece(self, token_id: int) -> str:
            return "x"

    other = LanguageModel(models["int8"].model, Shifted(), name="other")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="other tokens under the same ids"):
        Loads({"other": other}).run(models["original"], Context(files, settings={"against": "other"}))
