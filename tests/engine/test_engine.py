"""The loop over sequences, with a fake model that counts: after token i it always expects i + 1."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine import Engine, Request, SamplingParams
from coterie.engine.sequence import Event
from coterie.errors import ContextError
from coterie.model import Output, Transformer


class CountingModel:
    """Logits are 5 for the next id and 0 for the rest; it never looks at the cache."""

    cache_dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, **fields: object):
        self.config = ModelConfig(
            **{
                "vocab_size": 259,
                "hidden_size": 4,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
            }
            | {"max_position_embeddings": 64}
            | fields
        )
        self.n_rows: list[int] = []

    def __call__(self, ids_T: torch.Tensor, positions_T: torch.Tensor, cache: object) -> Output:
        assert ids_T.shape == positions_T.shape
        self.n_rows.append(len(ids_T))
        return Output(ids_T[:, None].float(), [])

    def head(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((hidden_TD[:, 0].long() + 1) % 259, 259) * 5.0


def request(text: str, **params: object) -> Request:
    ids = tuple(3 + b for b in text.encode())
    return Request(ids, SamplingParams.of(params), ids)


def by_sample(events: Sequence[Event]) -> dict[tuple[int, int], SimpleNamespace]:
    """(request, sample) -> its text, ids and why it ended; nothing may come after the end."""
    found: dict[tuple[int, int], SimpleNamespace] = defaultdict(lambda: SimpleNamespace(text="", ids=[], end=None))
    for e in events:
        sample = found[e.request, e.sample]
        assert sample.end is None
        sample.text += e.text
        sample.ids += [] if e.token_id is None else [e.token_id]
        sample.end = e.finish_reason
    return found


def run(model: object, tokenizer: object, *requests: Request, **options: int) -> dict[tuple[int, int], SimpleNamespace]:
    return by_sample(list(Engine(model, tokenizer, **options).run(requests)))  # type: ignore[arg-type]


def test_a_text_ends_at_max_tokens(byte_tokenizer: object) -> None:
    out = run(CountingModel(), byte_tokenizer, request("a", max_tokens=3))[0, 0]
    assert (out.text, out.end, len(out.ids)) == ("bcd", "length", 3)


def test_a_stop_string_ends_it_and_is_not_shown(byte_tokenizer: object) -> None:
    out = run(CountingModel(), byte_tokenizer, request("a", max_tokens=30, stop=["efg", "xyz"]))[0, 0]
    assert (out.text, out.end) == ("bcd", "stop")
    assert out.ids == [3 + b for b in b"bcdefg"]


def test_what_was_held_back_comes_out_at_the_end(byte_tokenizer: object) -> None:
    out = run(CountingModel(), byte_tokenizer, request("a", max_tokens=4, stop="def"))[0, 0]
    assert (out.text, out.end) == ("bcde", "length")


@pytest.mark.parametrize("fields", [{"eos_token_id": 3 + ord("d")}, {"eos_token_id": (1, 3 + ord("d"))}])
def test_a_stop_id_ends_it_and_has_no_text(byte_tokenizer: object, fields: dict[str, object]) -> None:
    out = run(CountingModel(**fields), byte_tokenizer, request("a", max_tokens=30))[0, 0]
    assert (out.text, out.end, out.ids[-1]) == ("bc", "stop", 3 + ord("d"))
    out = run(CountingModel(), byte_tokenizer, request("a", max_tokens=30, stop_token_ids=[3 + ord("d")]))[0, 0]
    assert (out.text, out.end) == ("bc", "stop")


def test_max_tokens_0_reads_the_prompt_only(byte_tokenizer: object) -> None:
    model = CountingModel()
    out = run(model, byte_tokenizer, request("abc", max_tokens=0))[0, 0]
    assert (out.text, out.ids, out.end) == ("", [], "length") and model.n_rows == [3]


def test_without_a_tokenizer_there_are_ids_and_no_text() -> None:
    out = run(CountingModel(), None, request("a", max_tokens=2))[0, 0]
    assert (out.text, out.ids) == ("", [3 + ord("b"), 3 + ord("c")])


def test_prompts_are_read_in_chunks_and_then_all_decode_together(byte_tokenizer: object) -> None:
    model = CountingModel()
    run(model, byte_tokenizer, request("abcde", max_tokens=3), request("abc", max_tokens=2), chunk=4)
    assert model.n_rows == [4, 4, 2, 1]  # 4 of the first; its last and the other 3; two decode; the longer one goes on


def test_more_requests_than_slots_wait(byte_tokenizer: object) -> None:
    requests = [request(chr(97 + i), max_tokens=1 + i % 3) for i in range(9)]
    model = CountingModel()
    found = run(model, byte_tokenizer, *requests, max_live=2)
    assert [found[i, 0].text for i in range(9)] == ["b", "cd", "def", "e", "fg", "ghi", "h", "ij", "jkl"]
    assert max(model.n_rows) <= 2


def test_samples_share_the_reading_of_the_prompt(byte_tokenizer: object) -> None:
    model = CountingModel()
    found = run(model, byte_tokenizer, request("abcdefgh", max_tokens=2, n=3))
    assert model.n_rows == [8, 3] and [found[0, s].text for s in range(3)] == ["ij"] * 3


def test_a_request_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextError, match="60 tokens plus max_tokens 5"):
        Engine(CountingModel()).add(request("a" * 60, max_tokens=5))  # type: ignore[arg-type]


def test_a_cancelled_request_says_no_more(byte_tokenizer: object) -> None:
    engine = Engine(CountingModel(), byte_tokenizer, max_live=2)  # type: ignore[arg-type]
    numbers = [engine.add(request(c, max_tokens=4)) for c in "adg"]
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
    make_model: Callable[..., Transformer], byte_tokenizer: object, window: int | None
) -> None:
    """Seeded sampling with every option on: alone, in a batch, behind a queue, in small chunks."""
    model = make_model(sliding_window=window, eos_token_id=None)
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 5, "repetition_penalty": 1.2, "max_tokens": 12, "n": 2}
    requests = [request(text, **options) for text in ("a", "hello there", "roi", "several words here")]
    together = run(model, byte_tokenizer, *requests)
    queued = run(model, byte_tokenizer, *requests, max_live=2, chunk=3)
    for i, r in enumerate(requests):
        alone = run(model, byte_tokenizer, r)
        for sample in (0, 1):
            assert alone[0, sample].ids == together[i, sample].ids == queued[i, sample].ids
    assert together[1, 0].ids != together[1, 1].ids


def test_routing_is_each_tokens_own(make_model: Callable[..., Transformer], byte_tokenizer: object) -> None:
    model = make_model(eos_token_id=None)
    r = request("hello", max_tokens=5, routing=True)
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
