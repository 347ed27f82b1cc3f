"""The loop over sequences, with a fake model that counts: after token i it always expects i + 1."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from coterie.engine import Engine
from coterie.errors import ContextError, RequestError, ResourceError
from coterie.model import Transformer


def test_a_text_ends_at_max_tokens(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    out = counting.run(counting.Model(), byte_tokenizer, counting.request("a", max_tokens=3))[0, 0]
    assert (out.text, out.end, len(out.ids)) == ("bcd", "length", 3)


def test_a_stop_string_ends_it_and_is_not_shown(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    out = counting.run(counting.Model(), byte_tokenizer, counting.request("a", max_tokens=30, stop=["efg", "xyz"]))[
        0, 0
    ]
    assert (out.text, out.end) == ("bcd", "stop")
    assert out.ids == [3 + b for b in b"bcdefg"]


def test_what_was_held_back_comes_out_at_the_end(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    out = counting.run(counting.Model(), byte_tokenizer, counting.request("a", max_tokens=4, stop="def"))[0, 0]
    assert (out.text, out.end) == ("bcde", "length")


@pytest.mark.parametrize("fields", [{"eos_token_id": 3 + ord("d")}, {"eos_token_id": (1, 3 + ord("d"))}])
def test_a_stop_id_ends_it_and_has_no_text(
    counting: SimpleNamespace, byte_tokenizer: object, fields: dict[str, object]
) -> None:
    out = counting.run(counting.Model(**fields), byte_tokenizer, counting.request("a", max_tokens=30))[0, 0]
    assert (out.text, out.end, out.ids[-1]) == ("bc", "stop", 3 + ord("d"))
    out = counting.run(
        counting.Model(), byte_tokenizer, counting.request("a", max_tokens=30, stop_token_ids=[3 + ord("d")])
    )[0, 0]
    assert (out.text, out.end) == ("bc", "stop")


def test_max_tokens_0_reads_the_prompt_only(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    model = counting.Model()
    out = counting.run(model, byte_tokenizer, counting.request("abc", max_tokens=0))[0, 0]
    assert (out.text, out.ids, out.end) == ("", [], "length") and model.n_rows == [3]


def test_without_a_tokenizer_there_are_ids_and_no_text(counting: SimpleNamespace) -> None:
    out = counting.run(counting.Model(), None, counting.request("a", max_tokens=2))[0, 0]
    assert (out.text, out.ids) == ("", [3 + ord("b"), 3 + ord("c")])


def test_prompts_are_read_in_chunks_and_then_all_decode_together(
    counting: SimpleNamespace, byte_tokenizer: object
) -> None:
    model = counting.Model()
    counting.run(
        model, byte_tokenizer, counting.request("abcde", max_tokens=3), counting.request("abc", max_tokens=2), chunk=4
    )
    assert model.n_rows == [4, 4, 2, 1]  # 4 of the first; its last and the other 3; two decode; the longer one goes on


def test_more_requests_than_slots_wait(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    requests = [counting.request(chr(97 + i), max_tokens=1 + i % 3) for i in range(9)]
    model = counting.Model()
    found = counting.run(model, byte_tokenizer, *requests, max_live=2)
    assert [found[i, 0].text for i in range(9)] == ["b", "cd", "def", "e", "fg", "ghi", "h", "ij", "jkl"]
    assert max(model.n_rows) <= 2


def test_samples_share_the_reading_of_the_prompt(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    model = counting.Model()
    found = counting.run(model, byte_tokenizer, counting.request("abcdefgh", max_tokens=2, n=3))
    assert model.n_rows == [8, 3] and [found[0, s].text for s in range(3)] == ["ij"] * 3


def test_a_prompt_is_read_beside_those_that_decode(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    """Each step gives the one that decodes its token, and the prompt the rest of a quarter of the room."""
    model = counting.Model()
    engine = Engine(model, byte_tokenizer, chunk=16)
    engine.add(counting.request("a", max_tokens=9))
    engine.step()
    engine.add(counting.request("k" * 10, max_tokens=2))
    brought = [engine.step() for _ in range(4)]
    assert model.n_rows == [1, 4, 4, 4, 2]
    assert [[e.request for e in events] for events in brought] == [[0], [0], [0], [0, 1]]


def test_a_short_prompt_does_not_wait_for_a_long_one(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, chunk=8)
    for text in ("k" * 100, "ab"):
        engine.add(counting.request(text, max_tokens=3))
    assert [e.request for e in engine.step()] == [1]


def test_owners_share_the_slots(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, max_live=2)
    for _ in range(6):
        engine.add(counting.request("a", owner="many", max_tokens=4))
    engine.step()
    few = engine.add(counting.request("a", owner="few", max_tokens=4))
    order = [e.request for step in range(20) for e in engine.step() if e.finish_reason]
    assert order.index(few) <= 3


def test_progress_is_told_while_a_prompt_is_read(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, chunk=4)
    engine.add(counting.request("k" * 10, max_tokens=1, wants_progress=True))
    events = [e for _ in range(3) for e in engine.step()]
    assert [e.progress for e in events] == [(4, 10), (8, 10), (10, 10), None]
    assert [e.token_id is None for e in events] == [True, True, True, False] and engine.is_idle


def test_min_tokens_and_what_may_stop_before(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    def ask(**params: object) -> tuple[str, str]:
        model = counting.Model(eos_token_id=3 + ord("d"))
        out = counting.run(model, byte_tokenizer, counting.request("a", max_tokens=6, **params))[0, 0]
        return out.text, out.end

    assert ask() == ("bc", "stop")
    assert ask(ignore_eos=True) == ("bcdefg", "length")
    assert ask(ignore_eos=True, stop_token_ids=[3 + ord("e")]) == ("bcd", "stop")
    assert ask(ignore_eos=True, min_tokens=3, stop="cd") == ("bcdefg", "length")  # complete too early: not looked at
    assert ask(ignore_eos=True, min_tokens=3, stop="cde") == ("bcdefg", "length")  # half of it was
    assert ask(ignore_eos=True, min_tokens=3, stop="ef") == ("bcd", "stop")
    text, end = ask(min_tokens=3)
    assert text[:2] == "bc" and len(text) >= 3 and end in ("stop", "length")


def test_what_stopped_a_text_may_stay_in_it(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    def ask(**params: object) -> str:
        r = counting.request("a", max_tokens=9, include_stop=True, **params)
        return str(counting.run(counting.Model(), byte_tokenizer, r)[0, 0].text)

    assert ask(stop="def") == "bcdef"
    assert ask(stop_token_ids=[3 + ord("d")]) == "bcd"


class Spelling:
    """A fake grammar: exactly this text, byte by byte, and then perhaps more."""

    def __init__(self, text: str, may_end: bool = False):
        self.ids, self.may_end = [3 + b for b in text.encode()], may_end

    def matcher(self, context_ids: object = (), end_ids: object = ()) -> "SpellingMatcher":
        return SpellingMatcher(self)


class SpellingMatcher:
    def __init__(self, grammar: Spelling):
        self._left, self._may_end = list(grammar.ids), grammar.may_end

    @property
    def is_done(self) -> bool:
        return not self._left

    def mask_(self, logits_V: torch.Tensor) -> None:
        keep = [self._left[0], 2] if self._may_end else [self._left[0]]
        kept = logits_V[keep]
        logits_V[:] = -torch.inf
        logits_V[keep] = kept

    def accept(self, token_id: int) -> None:
        if token_id != self._left.pop(0):
            raise RequestError("the fake grammar does not go on so")


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "n": 3}, {"routing": True}, {"logprobs": 1}])
def test_a_grammar_decides_what_may_come(
    counting: SimpleNamespace, byte_tokenizer: object, params: dict[str, object]
) -> None:
    r = counting.request("a", max_tokens=20, grammar=Spelling("xyz"), **params)
    found = counting.run(counting.Model(), byte_tokenizer, r, counting.request("k", max_tokens=3))
    for sample in range(int(params.get("n", 1))):  # type: ignore[call-overload]
        assert (found[0, sample].text, found[0, sample].end) == ("xyz", "stop")
    assert found[1, 0].text == "lmn"


def test_a_grammar_that_wants_nothing_ends_at_once(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    out = counting.run(counting.Model(), byte_tokenizer, counting.request("a", grammar=Spelling("")))[0, 0]
    assert (out.text, out.ids, out.end) == ("", [], "stop")


def test_the_end_is_chosen_where_the_grammar_lets_the_text_end(
    counting: SimpleNamespace, byte_tokenizer: object
) -> None:
    r = counting.request("a", max_tokens=9, grammar=Spelling("xyz", may_end=True), logit_bias={2: 5})
    out = counting.run(counting.Model(eos_token_id=2), byte_tokenizer, r)[0, 0]
    assert (out.text, out.end) == ("", "error") and "fake grammar" in out.error  # it was not told of the end


def test_a_request_that_memory_could_never_carry_is_refused(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(), cache_tokens=128)
    engine.add(counting.request("a" * 100, max_tokens=28))
    with pytest.raises(ResourceError, match=r"100 tokens plus max_tokens 29, n 1, may take 192 .* which has 128"):
        engine.add(counting.request("a" * 100, max_tokens=29))
    with pytest.raises(ResourceError, match="n 2"):
        engine.add(counting.request("a" * 100, max_tokens=28, n=2))


def test_a_cache_of_an_unknown_type_or_without_room_is_refused(counting: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="cache_type is 'int5', expected auto or int8"):
        Engine(counting.Model(), cache_type="int5")
    with pytest.raises(RequestError, match="cache_tokens is 0"):
        Engine(counting.Model(), cache_tokens=0)


def test_the_engine_tells_what_it_is_doing(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, max_live=2, cache_tokens=640)
    assert (engine.n_running, engine.n_waiting, engine.n_waiting_tokens, engine.cache_usage) == (0, 0, 0, 0)
    for text in ("k" * 70, "ab", "abc"):
        engine.add(counting.request(text, max_tokens=3))
    assert (engine.n_running, engine.n_waiting, engine.n_waiting_tokens) == (0, 3, 75)
    engine.step()
    assert (engine.n_running, engine.n_waiting, engine.n_waiting_tokens) == (2, 1, 3)
    assert engine.cache_usage == pytest.approx(3 / 10)
    counting.finish(engine)
    stats = engine.stats
    assert (stats.prompt_tokens, stats.generated_tokens, engine.cache_usage) == (75, 9, 0)


def test_a_prompt_is_read_once(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    """What the second has in common with the first comes out of the cache, and the answer too."""
    model = counting.Model()
    engine = Engine(model, byte_tokenizer)
    text = "".join(chr(97 + i % 23) for i in range(150))
    engine.add(counting.request(text, max_tokens=4))
    answer = counting.finish(engine)[0, 0].text
    engine.add(counting.request(text + answer + "?", max_tokens=2))
    assert counting.finish(engine)[1, 0].n_cached == [153]  # the answer's last token was never read
    assert model.n_rows == [150, 1, 1, 1, 2, 1]
    stats = engine.stats
    assert (stats.prompt_tokens, stats.prefix_queries, stats.cached_tokens) == (305, 305, 153)


def test_owners_share_no_prompt_unless_they_say_so(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, cache_tokens=6400)
    cached = []
    for owner, salt in (("a", ""), ("b", ""), ("a", ""), ("a", "s"), ("b", "s")):
        r = replace(counting.request("k" * 100, owner=owner, max_tokens=1), cache_salt=salt)
        number = engine.add(r)
        cached += counting.finish(engine)[number, 0].n_cached
    assert cached == [0, 0, 99, 0, 99]


def test_a_request_beyond_the_context_is_refused(counting: SimpleNamespace) -> None:
    with pytest.raises(ContextError, match="636 tokens plus max_tokens 5"):
        Engine(counting.Model()).add(counting.request("a" * 636, max_tokens=5))  # type: ignore[arg-type]


def test_a_cancelled_request_says_no_more(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    engine = Engine(counting.Model(), byte_tokenizer, max_live=2)  # type: ignore[arg-type]
    numbers = [engine.add(counting.request(c, max_tokens=4)) for c in "adg"]
    engine.step()
    engine.cancel(numbers[0])
    engine.cancel(numbers[2])
    events = []
    while not engine.is_idle:
        events += engine.step()
    assert {e.request for e in events} == {numbers[1]}
    assert "".join(e.text for e in events) == "fgh"


@pytest.mark.parametrize("window", [None, 5])
def test_company_changes_nothing(
    counting: SimpleNamespace, make_model: Callable[..., Transformer], byte_tokenizer: object, window: int | None
) -> None:
    """Seeded sampling with every option on: alone, in a batch, behind a queue, in small chunks."""
    model = make_model(sliding_window=window, eos_token_id=None)
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 5, "repetition_penalty": 1.2, "max_tokens": 12, "n": 2}
    requests = [counting.request(text, **options) for text in ("a", "hello there", "roi", "several words here")]
    together = counting.run(model, byte_tokenizer, *requests)
    queued = counting.run(model, byte_tokenizer, *requests, max_live=2, chunk=3)
    for i, r in enumerate(requests):
        alone = counting.run(model, byte_tokenizer, r)
        for sample in (0, 1):
            assert alone[0, sample].ids == together[i, sample].ids == queued[i, sample].ids
    assert together[1, 0].ids != together[1, 1].ids


def test_routing_is_each_tokens_own(
    counting: SimpleNamespace, make_model: Callable[..., Transformer], byte_tokenizer: object
) -> None:
    model = make_model(eos_token_id=None)
    r = counting.request("hello", max_tokens=5, routing=True)
    events = list(Engine(model, byte_tokenizer).run([r]))  # type: ignore[arg-type]
    assert [e.finish_reason for e in events] == [None] * 4 + ["length"]
    ids = [*r.prompt_ids, *(e.token_id for e in events)]
    from coterie.engine.runner import Runner

    (output,) = Runner(model).feed_all(0, ids)
    for place, e in enumerate(events, len(r.prompt_ids)):
        experts, weights = e.routing
        for layer, routing in enumerate(output.routings):
            assert experts[0, layer].tolist() == routing.ids_TK[place].tolist()
            torch.testing.assert_close(weights[0, layer], routing.weights_TK[place], atol=1e-5, rtol=0)
