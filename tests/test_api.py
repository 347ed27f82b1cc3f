from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch

import coterie
from coterie.api import LanguageModel
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import DEMO
from coterie.errors import CheckpointError, ContextError, RequestError, TokenizerError
from coterie.model import Transformer
from coterie.tokenizer.chat import CHAT_FORMS


@pytest.fixture(scope="module")
def lm(tiny_folder: Path) -> LanguageModel:
    return coterie.load(tiny_folder, dtype="float32", device="cpu")


@pytest.fixture
def without_tokenizer(tiny_folder: Path, tmp_path: Path) -> LanguageModel:
    folder = copytree(tiny_folder, tmp_path / "bare")
    (folder / "tokenizer.model").unlink()
    return coterie.load(folder)


def test_text_gets_one_bos_and_ids_are_used_as_given(lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode("Il était", bos=True)
    assert ids.count(1) == 1 and lm.encode("Il était") == tuple(ids)
    assert lm.generate("Il était", max_tokens=4).token_ids == lm.generate(ids, max_tokens=4).token_ids
    assert lm.generate(ids[1:], max_tokens=4).usage.prompt_tokens == len(ids) - 1


def test_a_completion(lm: LanguageModel) -> None:
    c = lm.generate("The king", max_tokens=6, logprobs=3, routing=True)
    assert len(c.token_ids) == 6 and c.finish_reason == "length" and c.others == []
    assert (c.usage.completion_tokens, c.usage.total_tokens) == (6, 6 + c.usage.prompt_tokens)
    prompt = list(lm.encode("The king"))
    whole = lm.tokenizer.decode(prompt + c.token_ids)
    assert whole == lm.tokenizer.decode(prompt) + c.text
    logits = lm.logits([*prompt, *c.token_ids])
    for place, lp in enumerate(c.logprobs):
        row = logits[len(prompt) - 1 + place].log_softmax(-1)
        assert lp.logprob == pytest.approx(float(row[lp.token_id]), abs=1e-4) and len(lp.top) == 3
        assert lp.top[0][0] == lp.token_id == c.token_ids[place]
    assert c.routing.token_ids == c.token_ids
    trace = lm.route([*prompt, *c.token_ids])
    assert torch.equal(trace.experts[len(prompt) :], c.routing.experts)


def test_what_was_not_asked_for_is_none(lm: LanguageModel) -> None:
    c = lm.generate("a", max_tokens=1)
    assert c.logprobs is None and c.routing is None


def test_streamed_is_the_same_as_at_once(lm: LanguageModel) -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 3}
    c, deltas = lm.generate("Es war", **options), list(lm.stream("Es war", **options))
    assert "".join(d.text for d in deltas) == c.text
    assert [i for d in deltas for i in d.token_ids] == c.token_ids
    assert [d.finish_reason for d in deltas][-1] == c.finish_reason and {d.finish_reason for d in deltas[:-1]} <= {None}


def test_seeds(lm: LanguageModel) -> None:
    options = {"max_tokens": 12, "temperature": 1.0}
    first = lm.generate("The", seed=1, n=3, **options)
    again = lm.generate("The", seed=1, n=3, **options)
    samples = [first, *first.others]
    assert [s.text for s in samples] == [s.text for s in (again, *again.others)] and len({s.text for s in samples}) == 3
    assert lm.generate("The", seed=1, **options).text == first.text
    many = lm.generate_many(["A roi", "The", [1, 5]], seed=1, **options)
    assert many[1].text == first.text
    assert lm.generate("The", **options).text != lm.generate("The", **options).text


def test_stop_strings_are_not_shown(lm: LanguageModel) -> None:
    text = lm.generate("The", max_tokens=20).text
    stop = text[5:8]
    c = lm.generate("The", max_tokens=20, stop=stop)
    assert c.finish_reason == "stop" and c.text == text[: text.index(stop)]


def test_logits(lm: LanguageModel) -> None:
    logits = lm.logits([1, 5, 9])
    assert logits.shape == (3, 340) and logits.dtype == torch.float32
    long = list(range(3, 203))
    assert torch.allclose(lm.logits(long)[:50], lm.logits(long[:50]), atol=1e-4)
    with pytest.raises(ContextError, match=r"257 tokens.* 256"):
        lm.logits([1] * 257)


def test_route(lm: LanguageModel) -> None:
    trace = lm.route("The king")
    T = len(lm.encode("The king"))
    assert trace.experts.shape == trace.weights.shape == (T, 3, 2) and len(trace.token_ids) == T
    assert torch.allclose(trace.weights.sum(-1), torch.ones(T, 3), atol=1e-6)
    json = trace.to_json()
    assert set(json) == {"experts", "weights"} and len(json["experts"]) == T and type(json["experts"][0][0][0]) is int


def test_a_dense_model_has_no_routing(make_model: Callable[..., Transformer]) -> None:
    dense = LanguageModel(make_model(num_local_experts=None))
    assert dense.route([1, 2, 3]).experts.shape == (3, 0, 0)
    assert dense.generate([1, 2], max_tokens=3, routing=True).routing.to_json() == {
        "experts": [[]] * 3,
        "weights": [[]] * 3,
    }


def test_score(lm: LanguageModel) -> None:
    context, continuations = "The king", [" had three", " a", " by the sea."]
    scores = lm.score(context, continuations)
    for text, s in zip(continuations, scores, strict=True):
        ids = lm.tokenizer.encode(context + text, bos=True)
        start = len(lm.encode(context))
        logprobs = lm.logits(ids).log_softmax(-1)
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert s.logprob == pytest.approx(expected, abs=1e-3)
        assert (s.n_tokens, s.n_bytes) == (len(ids) - start, len(text.encode()))
    best = lm.generate(context, max_tokens=4)
    assert lm.score(list(lm.encode(context)), [best.token_ids])[0].is_greedy
    assert not any(s.is_greedy for s in scores)
    assert lm.score(context + " ", ["had three"])[0].logprob == pytest.approx(scores[0].logprob, abs=1e-3)
    assert lm.score("", ["The king"])[0].n_tokens == len(lm.encode("The king")) - 1
    assert lm.score("a", []) == []


def test_a_folder_without_a_tokenizer_takes_ids(without_tokenizer: LanguageModel) -> None:
    lm = without_tokenizer
    assert not lm.has_tokenizer and len(lm.generate([1, 2], max_tokens=3).token_ids) == 3
    assert lm.generate([1, 2], max_tokens=3).text == ""
    for ask in (lambda: lm.generate("a"), lambda: lm.tokenizer, lambda: lm.generate([1], stop="a")):
        with pytest.raises(TokenizerError, match="has no tokenizer, so it takes token ids"):
            ask()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        ([340], "between 0 and 339"),
        ("\udcff", "UTF-8"),
        (b"a", "bytes"),
        (None, "None"),
        (3, "3"),
    ],
)
def test_prompts_that_cannot_be(lm: LanguageModel, prompt: object, said: str) -> None:
    for ask in (lm.generate, lm.stream, lm.route, lm.logits):
        with pytest.raises(RequestError, match=said):
            ask(prompt)


def test_a_long_prompt_names_both_numbers(lm: LanguageModel) -> None:
    with pytest.raises(ContextError, match=r"200000 tokens plus max_tokens 256 make 200256.* 256: shorten the prompt"):
        lm.generate([5] * 200_000)
    with pytest.raises(ContextError, match="at most 156"):
        lm.generate([5] * 100)


def test_requests_that_cannot_be(lm: LanguageModel) -> None:
    for ask in (
        lambda: lm.stream("a", n=2),
        lambda: lm.generate_many("text"),
        lambda: lm.stream("a", temprature=1),
        lambda: lm.score("a", "b"),
        lambda: lm.score("a", [[1]]),
        lambda: lm.score("a", [""]),
        lambda: lm.chat("hello"),
        lambda: lm.chat([{"role": "user"}]),
        lambda: lm.chat([{"role": "user", "content": "a"}], chat_form="chatty"),
        lambda: coterie.load(quantize="int7"),
    ):
        with pytest.raises(RequestError):
            ask()
    with pytest.raises(CheckpointError):
        coterie.load("/nowhere/at all")


def test_chat_encodes_with_the_form_and_stops_at_its_ids(lm: LanguageModel) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids = CHAT_FORMS["mistral-v1"].encode(messages, lm.tokenizer)
    assert ids.count(1) == 1
    c = lm.chat(messages, chat_form="mistral-v1", max_tokens=8)
    assert c.usage.prompt_tokens == len(ids) and c.token_ids == lm.generate(ids, max_tokens=8).token_ids
    assert c.text == lm.tokenizer.decode(c.token_ids)  # an answer begins anew: no space in front
    deltas = lm.stream(messages, chat_form="mistral-v1", max_tokens=8)
    assert "".join(d.text for d in deltas) == c.text


def test_a_model_without_a_chat_form_continues_the_text(lm: LanguageModel) -> None:
    assert lm.chat_form is None
    c = lm.chat([{"role": "user", "content": "The king"}], max_tokens=5)
    assert c.text == lm.generate("The king", max_tokens=5).text


def test_quantize_packs_as_it_loads_and_says_what_each_part_has(tmp_path: Path) -> None:
    convert(DEMO, tmp_path / "plain", to="huggingface", type="bf16")  # it ships packed
    lm = coterie.load(tmp_path / "plain", quantize="int8")
    bits = {b.part: b.bits_per_weight for b in lm.bits()}
    assert bits["experts"] < 8.6 and bits["attention"] == bits["embedding"] == 8.5 and bits["router"] == 32
    assert lm.generate("Il était une fois", max_tokens=4).usage.completion_tokens == 4


def test_a_type_that_is_no_name_is_a_sentence(tiny_folder: Path) -> None:
    """The search for the nearest name fell over what is no text."""
    for options in ({"quantize": 4}, {"dtype": torch.float16}):
        with pytest.raises(coterie.errors.RequestError, match="is unknown, expected one of"):
            coterie.load(tiny_folder, **options)  # type: ignore[arg-type]


def test_what_cannot_be_quantised_is_warned_of(tiny_folder: Path) -> None:
    with pytest.warns(UserWarning, match="24 matrices stay float32 because intermediate_size is 48"):
        lm = coterie.load(tiny_folder, quantize="int4")
    assert {b.part: b.format for b in lm.bits()}["experts"] == "float32"
