"""Items asked of a tiny model: the same numbers as asking one thing at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.errors import ContextError
from coterie.eval.ask import Asker
from coterie.eval.task import Answer, Choose, Generate, Item, Rolled, Rolling
from coterie.model import Output, Transformer


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Transformer], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(max_position_embeddings=64), byte_tokenizer)


class Recorder:
    def __init__(self, lm: LanguageModel) -> None:
        self.model = lm.model
        self.added: list[tuple[list[int], int, str]] = []

    def add(self, ids: Sequence[int], output: Output, domain: str, **place: Any) -> None:
        assert len(output.routings) == 3 and all(len(r.ids_TK) == len(ids) for r in output.routings)
        self.added.append((list(ids), len(output.hidden_TD), domain))


def ask(lm: LanguageModel, *items: Item, recorder: Any = None) -> tuple[dict[str, list[Answer]], Asker]:
    asker, found = Asker(lm, recorder=recorder), dict[str, list[Answer]]()

    def save(item: Item, answers: list[Answer]) -> None:
        assert item.id not in found
        found[item.id] = answers

    asker.ask(items, "t", save)
    return found, asker


def test_likelihoods_are_those_of_score(lm: LanguageModel) -> None:
    asks = (Choose("The cat", (" sat", " flew away")), Choose("Due ", ("gatti",)), Choose("", ("x y",)))
    found, _ = ask(lm, Item("a", asks, {}), Item("b", asks[:1], {}))
    for answer, one in zip(found["a"], asks, strict=True):
        expected = lm.score(one.context, one.continuations)
        assert isinstance(answer, list)
        for score, wanted in zip(answer, expected, strict=True):
            assert not isinstance(score, str)
            assert score.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert (score.is_greedy, score.n_tokens, score.n_bytes) == (
                wanted.is_greedy, wanted.n_tokens, wanted.n_bytes
            )  # fmt: skip
    assert found["b"] == found["a"][:1]


def test_a_context_that_is_too_long_loses_its_beginning_and_is_counted(lm: LanguageModel) -> None:
    long = "x" * 100 + "The cat"
    found, asker = ask(lm, Item("a", (Choose(long, (" sat", " ran")), Choose("The cat", (" sat",))), {}))
    assert asker.n_cut == 1
    ids = [3 + b for b in long.encode()][-(65 - 4) :]
    answer = found["a"][0]
    assert isinstance(answer, list) and not isinstance(answer[0], str)
    # the model reads 64 tokens; the 65th is only predicted
    logp = lm.logits([*ids, *(3 + b for b in b" sa")]).log_softmax(-1)
    expected = sum(float(logp[len(ids) - 1 + n, 3 + b]) for n, b in enumerate(b" sat"))
    assert answer[0].logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 128, 150])
def test_every_token_of_a_text_is_scored_once(lm: LanguageModel, n: int) -> None:
    text = "".join("abcdefg"[i % 7] for i in range(n))
    found, _ = ask(lm, Item("a", (Rolling(text),), {}))
    (rolled,) = found["a"]
    assert isinstance(rolled, Rolled) and (rolled.n_tokens, rolled.n_bytes) == (n, n)
    ids, nats, done = [3 + b for b in text.encode()], 0.0, 0
    while done < n:  # as many tokens as fit; later windows reach back as far as they can
        stop = min(done + 64, n)
        read = [1, *ids[: stop - 1]] if done == 0 else ids[max(0, stop - 65) : stop - 1]
        logp = lm.logits(read).log_softmax(-1)[-(stop - done) :]
        nats -= sum(float(row[t]) for row, t in zip(logp, ids[done:stop], strict=True))
        done = stop
    assert rolled.nats == pytest.approx(nats, abs=1e-3)


def test_generations_are_those_of_generate(lm: LanguageModel) -> None:
    items = [Item(str(n), (Generate("ab" * n, stop=("q",), max_tokens=8),), {}) for n in range(1, 5)]
    found, asker = ask(lm, *items)
    for item in items:
        (one,) = item.asks
        assert isinstance(one, Generate) and isinstance(one.prompt, str)
        assert found[item.id] == [[lm.generate(one.prompt, stop=["q"], max_tokens=8).text]]
    assert asker.n_read > 0 and asker.n_cut == 0


def test_samples_depend_on_the_seed_and_on_nothing_beside_it(lm: LanguageModel) -> None:
    one = Generate("ab", max_tokens=6, n=3, temperature=1.0)
    alone, _ = ask(lm, Item("x", (one,), {}))
    together, _ = ask(lm, Item("y", (one,), {}), Item("x", (one,), {}))
    assert alone["x"] == together["x"] and len(alone["x"][0]) == 3  # type: ignore[arg-type]
    assert together["y"] != together["x"]


def test_a_prompt_keeps_room_for_its_answer(lm: LanguageModel) -> None:
    found, asker = ask(lm, Item("a", (Generate("x" * 70 + "ab", max_tokens=10),), {}))
    ids = [3 + b for b in b"x" * 52 + b"ab"]
    assert found["a"] == [[lm.generate(ids, max_tokens=10).text]] and asker.n_cut == 1
    with pytest.raises(ContextError, match="64 tokens leave no room"):
        ask(lm, Item("a", (Generate("ab", max_tokens=64),), {}))


def test_messages_without_a_chat_form_are_their_texts(lm: LanguageModel) -> None:
    messages = ({"role": "user", "content": "ab"}, {"role": "user", "content": "cd"})
    found, _ = ask(lm, Item("a", (Generate(messages, max_tokens=4),), {}))
    assert found["a"] == [[lm.generate("ab\ncd", max_tokens=4).text]]


def test_the_recorder_gets_every_token_with_its_routing(lm: LanguageModel) -> None:
    recorder = Recorder(lm)
    asks = (Choose("The cat", (" sat", " ran")), Generate("ab", max_tokens=4))
    _, asker = ask(lm, Item("a", asks, {}), recorder=recorder)
    assert all(len(ids) == n and domain == "t" for ids, n, domain in recorder.added)
    assert sum(n for _, n, _ in recorder.added) == asker.n_read
    assert recorder.added[-1][0][:3] == [1, 3 + ord("a"), 3 + ord("b")]


def test_nothing_is_read_where_nothing_is_asked(lm: LanguageModel) -> None:
    found, asker = ask(lm)
    assert (found, asker.n_read, asker.n_asked) == ({}, 0, 0)
    assert math.isfinite(asker.n_cut)
