"""A request gets bitwise the same tokens alone or among thirty others: whenever it arrives, whoever leaves, with
prefixes shared or not, with drafts or without, in memory that is scarce or not; and in the end no page is missing.
"""

import functools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import coterie
from coterie.engine import Engine, Request, SamplingParams
from coterie.engine.grammar import Grammar
from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event
from coterie.kernels import cpu
from coterie.routing.edits import ExpertEdits

pytestmark = pytest.mark.skipif(cpu.names() == ["reference"], reason="the native kernels are not built")

N_REQUESTS = 30
SYSTEM = "Il était une fois un roi qui avait trois filles, et la plus jeune était si belle que le soleil. " * 3
TEXTS = [
    "The king had three daughters.", "def king(n):\n    return [n, n + 1]\n", "Es war einmal ein König",
    "one two three one two three one two", SYSTEM + "La reine dit :", SYSTEM + "Le roi dit :", SYSTEM,
    "a", "Once upon a time there was a café by the sea, " * 12,
]  # fmt: skip
SAMPLING = [
    {},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9, "n": 2},
    {"temperature": 0.7, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 1.2, "typical_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"logprobs": 3},
    {"routing": True},
    {"temperature": 0.9, "routing": True, "logprobs": 0, "n": 3},
    {"stop": ["e", " the"], "min_tokens": 3, "max_tokens": 30},
    {"ignore_eos": True, "logit_bias": {300: 2.0}},
]


@dataclass
class Answer:
    """All that came of one sample."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    routing: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    end: str | None = None

    def take(self, e: Event) -> None:
        assert self.end is None and e.error is None
        self.text += e.text
        self.ids += [] if e.token_id is None else [e.token_id]
        self.logprobs.append(e.logprob)
        self.routing += [] if e.routing is None else [e.routing]
        self.end = e.finish_reason

    def check(self, other: "Answer") -> None:
        """The same, to the bit."""
        assert (self.ids, self.text, self.end, self.logprobs) == (other.ids, other.text, other.end, other.logprobs)
        assert len(self.routing) == len(other.routing)
        for (e, w), (e2, w2) in zip(self.routing, other.routing, strict=True):
            assert torch.equal(e, e2) and torch.equal(w, w2)


Answers = dict[int, Answer]  # by sample


@pytest.fixture(scope="module")
def lm() -> coterie.LanguageModel:
    return coterie.load()


def make_requests(lm: coterie.LanguageModel, seed: int) -> list[Request]:
    rng, requests = random.Random(seed), []
    grammar = Grammar.compile("regex", "[a-z]+( [a-z]+){3}[.]", lm.tokenizer)
    for number in range(N_REQUESTS):
        ids = lm.encode(rng.choice(TEXTS))
        ids = ids[: rng.randint(1, len(ids))] if rng.random() < 0.3 else ids
        params = SamplingParams.of({"max_tokens": rng.choice([0, 1, 5, 20, 60]), "seed": number} | rng.choice(SAMPLING))
        edits = ExpertEdits(ban=((1, 2), (3, 0)), top_k=1) if rng.random() < 0.15 else None
        form = grammar if rng.random() < 0.15 else None
        requests.append(Request(ids, params, ids, owner=rng.choice("abc"), grammar=form, experts=edits))
    return requests


def alone(lm: coterie.LanguageModel, request: Request, cache_type: str) -> Answers:
    answers: Answers = {}
    for e in Engine(lm.model, lm.tokenizer, share=False, cache_type=cache_type).run([request]):
        answers.setdefault(e.sample, Answer()).take(e)
    return answers


@pytest.fixture(scope="module")
def questions(lm: coterie.LanguageModel) -> Callable[[str], list[tuple[Request, Answers]]]:
    """By type of the cache."""
    return functools.cache(lambda kind: [(r, alone(lm, r, kind)) for r in make_requests(lm, 1)])


ENGINES: dict[str, dict[str, object]] = {
    "plain": {},
    "no sharing": {"share": False},
    "small chunks": {"chunk": 24, "max_live": 9},
    "drafts": {"speculate": True, "chunk": 100},
    "scarce": {"cache_tokens": 64 * 24, "max_live": 12, "chunk": 64},
    "8 bits": {"cache_type": "int8", "cache_tokens": 64 * 40, "speculate": True},
    "scarce drafts": {"cache_tokens": 64 * 24, "speculate": True},
}


def play(
    engine: Engine, questions: Sequence[tuple[Request, Answers]], rng: random.Random, leaves: float
) -> Iterator[tuple[int, Answers]]:
    """Requests arrive at random and some leave at random; (question, answers) of those that stay to the end."""
    order = rng.sample(range(len(questions)), len(questions))
    open_: dict[int, tuple[int, Answers]] = {}
    while order or not engine.is_idle:
        while order and rng.random() < 0.4:
            question = order.pop()
            open_[engine.add(questions[question][0])] = question, {}
        for e in engine.step():
            open_[e.request][1].setdefault(e.sample, Answer()).take(e)
        if open_ and rng.random() < leaves:
            gone = rng.choice(list(open_))
            engine.cancel(gone)
            del open_[gone]
    yield from open_.values()


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_company_changes_no_bit(
    lm: coterie.LanguageModel,
    questions: Callable[[str], list[tuple[Request, Answers]]],
    options: dict[str, object],
    is_full: bool,
) -> None:
    engine = Engine(lm.model, lm.tokenizer, **options)  # type: ignore[arg-type]
    asked = questions(str(options.get("cache_type", "auto")))
    for seed in range(20 if is_full else 2):  # the second time prompts are at hand, and some leave
        n_checked = 0
        for question, answers in play(engine, asked, random.Random(seed), 0.03 * (seed % 2)):
            expected = asked[question][1]
            assert answers.keys() == expected.keys()
            for sample, answer in answers.items():
                answer.check(expected[sample])
            n_checked += 1
        assert n_checked >= N_REQUESTS // 3
        cache = engine.runner.cache
        assert cache.n_free == cache.n_pages and engine.cache_usage == 0
    stats = engine.stats
    assert (stats.cached_tokens > 0) == options.get("share", True)
    assert (stats.accepted > 0) == ("speculate" in options)
    assert stats.expert_tokens_LE.sum() > 0


def test_a_text_has_the_form_that_was_asked_for(lm: coterie.LanguageModel) -> None:
    form = Grammar.compile("regex", "[a-z]+, [0-9]{2} (cats|dogs)", lm.tokenizer)
    ids = lm.encode("The king had")
    params = [SamplingParams(max_tokens=40, temperature=t, seed=3, n=n) for t, n in ((0, 1), (1.0, 4))]
    engine = Engine(lm.model, lm.tokenizer, speculate=True)
    texts: dict[tuple[int, int], str] = {}
    for e in engine.run([Request(ids, p, ids, grammar=form) for p in params]):
        texts[e.request, e.sample] = texts.get((e.request, e.sample), "") + e.text
    assert len(texts) == 5
    for text in texts.values():
        assert re.fullmatch(r"[a-z]+, [0-9]{2} (cats|dogs)", text.strip()), text


def test_drafts_make_fewer_passes(lm: coterie.LanguageModel) -> None:
    ids = lm.encode("one two three four five six seven one two three four five six seven one two three four")
    request = Request(ids, SamplingParams(max_tokens=60), ids)
    passes = {}
    for speculate in (False, True):
        engine = Engine(lm.model, lm.tokenizer, speculate=speculate)
        list(engine.run([request]))
        passes[speculate] = engine.stats.passes
    assert passes[True] < passes[False] == 60


def test_every_row_of_experts_is_counted(lm: coterie.LanguageModel) -> None:
    engine = Engine(lm.model, lm.tokenizer)
    ids = lm.encode("The king had three daughters.")
    list(engine.run([Request(ids, SamplingParams(max_tokens=9), ids)]))
    trace = lm.route([*ids, *lm.generate(ids, max_tokens=9).token_ids[:-1]])
    counts = engine.stats.expert_tokens_LE
    for layer in range(lm.config.num_hidden_layers):
        assert counts[layer].tolist() == torch.bincount(trace.experts[:, layer].flatten(), minlength=8).tolist()
