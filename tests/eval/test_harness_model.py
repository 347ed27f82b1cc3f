"""The harness's requests answered by a coterie model: the same numbers as `lm.score`, and the harness's conventions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("lm_eval")

from coterie.api import LanguageModel
from coterie.errors import ContextError, RequestError
from coterie.eval.harness_model import CoterieLM
from coterie.model import Transformer
from coterie.tokenizer import chat_form

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Request(NamedTuple):
    """What the harness hands over, as far as a model reads it."""

    args: tuple[Any, ...]


class Hook:
    """Stands for the harness's cache."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, args: Any, answer: Any) -> None:
        self.kept.append((kind, args, answer))


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(max_position_embeddings=48), byte_tokenizer, chat_form("mistral-v1"))


@pytest.fixture()
def harness(lm: LanguageModel) -> CoterieLM:
    return CoterieLM(lm)


def ask(harness: CoterieLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return harness.loglikelihood([Request(pair) for pair in pairs], disable_tqdm=True)


def test_likelihoods_are_those_of_score_in_the_order_asked(harness: CoterieLM, lm: LanguageModel) -> None:
    pairs = [("the king", " had"), ("a", "b"), ("the king", " sat down"), ("", "x"), ("a ", "b")]
    answers = ask(harness, *pairs)
    for (context, continuation), (logprob, is_greedy) in zip(pairs, answers, strict=True):
        score = lm.score(context, [continuation])[0]
        assert (logprob, is_greedy) == (pytest.approx(score.logprob, abs=1e-5), score.is_greedy)


def test_a_bos_that_is_spelled_is_not_written_twice(harness: CoterieLM) -> None:
    assert ask(harness, ("<s>the king", " had")) == ask(harness, ("the king", " had"))
    assert harness.tok_encode("<s>a") == harness.tok_encode("a") == [1, 3 + ord("a")]
    assert harness.tok_encode("a", add_special_tokens=False) == [3 + ord("a")]


def test_too_long_a_context_loses_its_beginning(harness: CoterieLM, lm: LanguageModel) -> None:
    # 48 tokens are read, the last of the continuation is not: of the context 49 - 2 = 47 stay, and no BOS
    context = "".join(chr(97 + i % 26) for i in range(80))
    ids = lm.tokenizer.encode(context)[-47:]
    ((logprob, _),) = ask(harness, (context, "xy"))
    logits_TV = lm.logits([*ids, *lm.tokenizer.encode("x")]).log_softmax(-1)
    by_hand = float(logits_TV[-2, 3 + ord("x")] + logits_TV[-1, 3 + ord("y")])
    assert logprob == pytest.approx(by_hand, abs=1e-4)


def test_too_long_a_continuation_is_refused(harness: CoterieLM) -> None:
    with pytest.raises(ContextError, match="49 tokens"):
        ask(harness, ("a", "b" * 49))


def test_rolling_scores_every_token_once(lm: LanguageModel) -> None:
    logits_TV = lm.logits([1, *lm.tokenizer.encode("abcdef")]).log_softmax(-1)
    by_hand = sum(float(logits_TV[t, i]) for t, i in enumerate(lm.tokenizer.encode("abcdef")))
    once = CoterieLM(lm, rolling_bos="once").loglikelihood_rolling([Request(("abcdef",))], disable_tqdm=True)
    assert once == [pytest.approx(by_hand, abs=1e-4)]
    with_bos = lm.logits([1, 1, *lm.tokenizer.encode("abcdef")]).log_softmax(-1)
    twice = sum(float(with_bos[t, i]) for t, i in enumerate([1, *lm.tokenizer.encode("abcdef")]))
    as_harness = CoterieLM(lm).loglikelihood_rolling([Request(("abcdef",))], disable_tqdm=True)
    assert as_harness == [pytest.approx(twice, abs=1e-4)]


def test_windows_of_a_long_text(lm: LanguageModel) -> None:
    harness = CoterieLM(lm, max_length=4, rolling_bos="once")
    a = 3 + ord("a")
    assert list(harness._windows("abcdefghij")) == [
        ([1], [a, a + 1, a + 2, a + 3]),
        ([a + 3], [a + 4, a + 5, a + 6, a + 7]),
        ([a + 5, a + 6, a + 7], [a + 8, a + 9]),
    ]
    assert list(harness._windows("")) == []


def test_answers_end_before_the_first_stop_string(harness: CoterieLM, lm: LanguageModel) -> None:
    asked = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    texts = harness.generate_until([Request(("the king", asked)), Request(("a", asked))], disable_tqdm=True)
    for text, prompt in zip(texts, ("the king", "a"), strict=True):
        written = lm.tokenizer.decode(lm.generate(prompt, max_tokens=12).token_ids)
        assert text == written.split("\n")[0].split("</s>")[0]
    first = texts[0][1]
    cut = harness.generate_until([Request(("the king", {**asked, "until": first}))], disable_tqdm=True)
    assert cut == [texts[0].split(first)[0]]


def test_each_request_has_its_own_options(harness: CoterieLM) -> None:
    short, long = {"until": [], "max_gen_toks": 2}, {"until": [], "max_tokens": 9}
    requests = [Request(("the king", o)) for o in (long, short, long)]
    texts = harness.generate_until(requests, disable_tqdm=True)
    assert texts[0] == texts[2] and texts[0].startswith(texts[1]) and texts[0] != texts[1]


def test_options_that_cannot_be_met_are_refused(harness: CoterieLM) -> None:
    with pytest.raises(RequestError, match="num_beams"):
        harness.generate_until([Request(("a", {"num_beams": 4, "max_gen_toks": 2}))], disable_tqdm=True)
    with pytest.raises(ContextError, match="max_gen_toks"):
        harness.generate_until([Request(("a", {"max_gen_toks": 48}))], disable_tqdm=True)
    with pytest.raises(RequestError, match="rolling_bos"):
        CoterieLM(harness.lm, rolling_bos="twice")


def test_what_is_found_is_kept_by_the_harness_cache(harness: CoterieLM) -> None:
    harness.set_cache_hook(hook := Hook())
    answers = ask(harness, ("a", "b"), ("c", "d"))
    assert sorted(hook.kept) == [("loglikelihood", ("a", "b"), answers[0]), ("loglikelihood", ("c", "d"), answers[1])]
    total = harness.loglikelihood_rolling([Request(("ab",))], disable_tqdm=True)
    assert hook.kept[-1] == ("loglikelihood_rolling", ("ab",), total[0])


def test_the_cache_of_the_harness_asks_nothing_twice(lm: LanguageModel, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    requests = [Request(("a", "b")), Request(("c", "d"))]
    first = CachingLM(CoterieLM(lm), str(tmp_path / "cache.db")).loglikelihood(requests)
    silent = CoterieLM(lm)
    silent._score = None  # type: ignore[assignment]  # nothing may be asked of it
    again = CachingLM(silent, str(tmp_path / "cache.db"))
    assert again.loglikelihood(requests) == first
    again.dbdict.close()


def test_a_conversation_keeps_its_ids(harness: CoterieLM, lm: LanguageModel) -> None:
    turns = [{"role": "user", "content": "[/INST] who?"}]
    text = harness.apply_chat_template(turns)
    assert harness._context(text) == chat_form("mistral-v1").encode(turns, lm.tokenizer)
    begun = [*turns, {"role": "assistant", "content": "It"}]
    assert harness._context(harness.apply_chat_template(begun, add_generation_prompt=False))[
        -2:
    ] == lm.tokenizer.encode("It")
    assert harness.chat_template(True) == "mistral-v1" and harness.chat_template(False) == ""
    with pytest.raises(RequestError, match="chat_form"):
        CoterieLM(LanguageModel(lm.model, lm.tokenizer)).apply_chat_template(turns)
