import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from coterie.api import LanguageModel
from coterie.errors import DataError, RequestError
from coterie.eval.rows import Files
from coterie.eval.task import Context
from coterie.eval.text_tasks import Perplexity
from coterie.model import Output, Transformer
from coterie.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make_model(), byte_tokenizer)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for name, texts in {"de": ["ein Text " * 40, "kurz"], "en": ["a text " * 50, "one more, " * 33]}.items():
        lines = [json.dumps({"text": text, "lang": name}) for text in texts]
        (tmp_path / f"{name}.valid.jsonl").write_text("\n".join(lines))
    (tmp_path / "short.txt").write_text("abc")
    return Files(tmp_path)


def test_over_all_by_domain_and_by_context_length(lm: LanguageModel, files: Files) -> None:
    steps: list[tuple[str, int, int]] = []
    context = Context(files, settings={"lengths": "32,64,256", "blocks": "5"}, progress=lambda *s: steps.append(s))
    found = Perplexity(context).run(lm, context)
    by_name = {(m.group, m.name): m for m in found.metrics}
    n_bytes = {"de": 364, "en": 680}
    assert by_name["", "bits_per_byte"].n == 4
    mean = sum(by_name[d, "bits_per_byte"].value * n for d, n in n_bytes.items()) / 1044
    assert by_name["", "bits_per_byte"].value == pytest.approx(mean)
    assert {n for g, n in by_name if g == "en"} == {
        "bits_per_byte", "perplexity", "perplexity@32", "perplexity@64", "perplexity@256",
    }  # fmt: skip
    assert ("", "perplexity@64") in by_name and found.n_items == 4
    assert [s.key for s in found.sections] == ["perplexity-by-domain", "perplexity-by-context"]
    assert [row[0] for row in found.sections[1].rows] == ["all", "de", "en"]
    assert found.notes == ["1 of 4 texts are shorter than the window of 256 tokens: one window each"]
    assert steps[-1][1] == steps[-1][2] and {s[0].split(",")[0] for s in steps} == {"perplexity", "context length"}


def test_a_text_shorter_than_the_window_is_scored_and_said_so(lm: LanguageModel, files: Files) -> None:
    found = Perplexity(file=f"{files.folder}/short.txt").run(lm, Context(files))
    assert [(m.name, m.group) for m in found.metrics] == [("bits_per_byte", ""), ("perplexity", "")]
    assert found.metrics[0].stderr is None and len(found.notes) == 2 and len(found.sections) == 1


def test_a_recorder_gets_every_token_of_a_text_once(lm: LanguageModel, files: Files) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.ids: dict[str, list[int]] = {}
            self.places: list[tuple[int, bool]] = []

        def add(self, ids: Sequence[int], output: Output, domain: str, *, position: int, continues: bool) -> None:
            self.places.append((position, continues))
            assert all(len(routing.ids_TK) == len(ids) for routing in output.routings)
            self.ids.setdefault(domain, []).extend(ids)

    recorder = Recorder()
    settings = {"context": "32", "stride": "8", "blocks": "0", "files": f"{files.folder}/short.txt,en.valid"}
    Perplexity().run(lm, Context(files, settings=settings, recorder=recorder))
    assert recorder.ids["short"] == lm.tokenizer.encode("ab", bos=True)
    assert recorder.places[:4] == [(0, False), (0, False), (24, True), (24, True)]  # a short text, a long one
    texts = ["a text " * 50, "one more, " * 33]
    assert [i for i in recorder.ids["en"] if i != 1] == [i for t in texts for i in lm.tokenizer.encode(t[:-1])]


def test_what_is_wrong_is_said(lm: LanguageModel, files: Files, tmp_path: Path) -> None:
    def run(**settings: str) -> None:
        Perplexity().run(lm, Context(files, settings=settings))

    with pytest.raises(RequestError, match="--set context=512: expected a whole number from 2 to 256"):
        run(context="512")
    with pytest.raises(RequestError, match="--set stride=65: expected a whole number from 1 to 64"):
        run(context="64", stride="65")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty.txt has no text to score"):
        run(files=str(tmp_path / "empty.txt"))


def test_an_interrupted_run_goes_on_where_it_stopped(lm: LanguageModel, files: Files, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_in_the_curves(what: str, done: int, total: int) -> None:
        if what.startswith("context length, en") and done > total // 2:
            raise Stop

    settings, run_dir, steps = {"lengths": "32,64,256", "blocks": "5"}, tmp_path / "run", list[tuple[str, int]]()
    with pytest.raises(Stop):
        Perplexity().run(lm, Context(files, settings=settings, run_dir=run_dir, progress=stop_in_the_curves))
    context = Context(
        files, settings=settings, run_dir=run_dir, progress=lambda what, done, total: steps.append((what, done))
    )
    again, fresh = Perplexity().run(lm, context), Perplexity().run(lm, Context(files, settings=settings))
    assert again.metrics == fresh.metrics
    assert not any(what == "perplexity" for what, _ in steps)
    assert [step for step in steps if "de" in step[0]] == [
        ("context length, de (1 of 2)", 5 * n) for n in (32, 96, 352)
    ]
    other = LanguageModel(lm.model, lm.tokenizer)
    other.model.layers[0].feed_forward.router.weight.data.mul_(1.5)
    try:
        changed = Perplexity().run(other, context)
    finally:
        other.model.layers[0].feed_forward.router.weight.data.div_(1.5)
    assert changed.metrics[0] != fresh.metrics[0]
