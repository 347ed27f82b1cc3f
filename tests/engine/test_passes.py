"""What fails is alone in its failure."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from coterie.engine import Engine
from coterie.engine.passes import Part, forward
from coterie.errors import CheckpointError
from coterie.model import Transformer

X = 3 + ord("x")


def model_that_fails(counting: SimpleNamespace, at: int = X, times: int = 1 << 30) -> object:
    model = counting.Model()
    model.fails_at, model.n_failures = (at,), times
    return model


@pytest.mark.parametrize("chunk", [3, 512])
def test_a_prompt_that_fails_ends_alone(counting: SimpleNamespace, byte_tokenizer: object, chunk: int) -> None:
    texts = ["abc", "dxe", "fgh", "ijk", "lmn"]
    requests = [counting.request(text, max_tokens=4, n=1 + i % 3) for i, text in enumerate(texts)]
    found = counting.run(model_that_fails(counting), byte_tokenizer, *requests, chunk=chunk)
    assert len(found) == 1 + 2 + 3 + 1 + 2  # one end for each sample, also of those that never began
    for (number, _), out in found.items():
        if number == 1:
            assert (out.end, out.ids) == ("error", []) and out.error.endswith("(RuntimeError): try it again")
        else:
            assert (out.end, len(out.ids)) == ("length", 4)


def test_a_text_that_fails_keeps_what_it_had(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    requests = [counting.request(text, max_tokens=8) for text in ("a", "u", "c", "v")]
    found = counting.run(model_that_fails(counting), byte_tokenizer, *requests)
    assert [(found[i, 0].text, found[i, 0].end) for i in range(4)] == [
        ("bcdefghi", "length"),
        ("vwx", "error"),
        ("defghijk", "length"),
        ("wx", "error"),
    ]


def test_what_fails_once_is_done_again(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    model = model_that_fails(counting, times=1)
    found = counting.run(model, byte_tokenizer, *(counting.request(c, max_tokens=8) for c in "au"))
    assert [found[i, 0].end for i in range(2)] == ["length", "length"]


def test_logits_that_are_no_numbers_end_one_sequence(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    model = counting.Model()
    model.breaks_at = (X,)
    options = [{}, {"temperature": 1.0, "top_k": 1}, {"logprobs": 2}, {"routing": True}]
    requests = [counting.request(c, max_tokens=6, **o) for c in "au" for o in options]
    found = counting.run(model, byte_tokenizer, *requests)
    for i in range(8):
        out = found[i, 0]
        if i < 4:
            assert (out.text, out.end) == ("bcdefg", "length")
        else:
            assert (out.text, out.end) == ("vwx", "error") and "logits are not finite" in out.error


def test_run_raises_what_went_wrong(counting: SimpleNamespace, byte_tokenizer: object) -> None:
    with pytest.raises(RuntimeError, match="this pass fails"):
        list(Engine(model_that_fails(counting), byte_tokenizer).run([counting.request("u", max_tokens=9)]))
    model = counting.Model()
    model.breaks_at = (X,)
    with pytest.raises(CheckpointError, match="not finite"):
        list(Engine(model, byte_tokenizer).run([counting.request("u", max_tokens=9)]))


def test_a_pass_that_is_divided_has_the_memory_of_the_one_that_failed(
    counting: SimpleNamespace, byte_tokenizer: object
) -> None:
    """On a card memory runs out in a pass; what its frames hold must be free for the smaller ones."""
    engine, held, n_tries = Engine(counting.Model(), byte_tokenizer), list[weakref.ref[torch.Tensor]](), 0

    def scarce(run: Callable[..., object]) -> Callable[..., object]:
        def wrapped(work: list[object], edits: object = None) -> object:
            nonlocal n_tries
            n_tries += 1
            assert all(ref() is None for ref in held)
            taken = torch.empty(4)
            held.append(weakref.ref(taken))
            if len(work) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(work, edits)

        return wrapped

    engine.runner.feed = scarce(engine.runner.feed)  # type: ignore[method-assign,assignment]
    engine.runner.step = scarce(engine.runner.step)  # type: ignore[method-assign,assignment]
    for text in "abcd":
        engine.add(counting.request(text, max_tokens=3))
    found = counting.finish(engine)
    assert [out.end for out in found.values()] == ["length"] * 4 and n_tries > 14


def test_passes_run_on_the_model_s_card(counting: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current card, which is the first one whatever a model's tensors say."""
    entered = list[torch.device]()

    def enter(device: torch.device) -> AbstractContextManager[None]:
        entered.append(device)
        return nullcontext()

    runner = Engine(counting.Model(), None).runner
    monkeypatch.setattr(torch.cuda, "device", enter)
    runner.device = torch.device("cuda:1")
    output = runner.feed([(0, [5, 6])])
    runner.logits(output.hidden_TD)
    runner.logits(runner.step([7]).hidden_TD)
    assert entered == [torch.device("cuda:1")] * 4


@pytest.mark.parametrize("window", [None, 70])
def test_a_failed_pass_leaves_no_trace(
    make_model: Callable[..., Transformer], counting: SimpleNamespace, window: int | None
) -> None:
    """A real model whose pass fails after it has written into the cache, again and again: the same tokens."""
    model = make_model(eos_token_id=None, sliding_window=window)
    requests = [counting.request(chr(97 + i) * (20 + 40 * i), max_tokens=12, n=1 + i % 2) for i in range(4)]
    expected = counting.run(model, None, *requests)
    engine = Engine(model, cache_tokens=64 * 40)
    logits, n_calls = engine.runner.logits, 0

    def fails_often(hidden: object) -> object:
        nonlocal n_calls
        n_calls += 1
        if n_calls % 4 == 0:
            raise RuntimeError("after the pass")
        return logits(hidden)  # type: ignore[arg-type]

    engine.runner.logits = fails_often  # type: ignore[assignment,method-assign]
    for r in requests:
        engine.add(r)
    found = counting.finish(engine)
    survivors = [key for key in expected if found[key].end != "error"]
    assert survivors and all(found[key].ids == expected[key].ids for key in survivors)
    assert engine.runner.cache.n_free == 40


def test_rows_that_need_no_logits_get_none(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(), chunk=5)
    engine.add(counting.request("abcdefgh", max_tokens=2))
    engine.step()
    (s,) = engine._live.sequences
    (result,) = forward(engine.runner, [Part(s, s.request.prompt_ids[5:7])])
    assert result.logits_NV is None and result.output is not None and len(result.output.hidden_TD) == 2
