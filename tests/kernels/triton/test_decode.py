"""Whole passes of a small model through Triton's kernels beside torch's operations: prompts, steps, steps as graphs."""

from collections.abc import Callable, Iterator

import pytest
import torch

from coterie.engine import runner as runner_module
from coterie.engine.engine import Engine
from coterie.engine.graphs import DecodeGraphs, bucket
from coterie.engine.request import Request, SamplingParams
from coterie.engine.runner import Runner
from coterie.kernels import cpu, gpu
from coterie.model import Transformer

PROMPTS = [[5, 9, 2, 7, 1], [4, 4], [11, 2, 10]]


@pytest.fixture
def model(make_model: Callable[..., Transformer], device: torch.device, is_card: bool) -> Iterator[Transformer]:
    """On a card, or on the CPU under the interpreter."""
    made = make_model(num_hidden_layers=3 if is_card else 1).to(device)
    if is_card:
        yield made
        return
    with cpu.use("reference"), gpu.interpreted():
        yield made


def logits_of(model: Transformer, has_graphs: bool) -> list[torch.Tensor]:
    """Of prompts, then of two steps."""
    runner = Runner(model)
    if not has_graphs:
        runner._graphs = None
    hidden = runner.feed([(slot, ids) for slot, ids in enumerate(PROMPTS)]).hidden_TD
    found = [runner.logits(hidden).clone()]
    for step in range(2):
        output = runner.step([3 + step, 7, 1])
        found.append(runner.logits(output.hidden_TD).clone())
        assert len(output.routings) == model.config.num_hidden_layers and len(output.routings[0].ids_TK) == 3
    return found


@pytest.mark.parametrize("has_graphs", [True, False])
def test_passes_are_those_of_torch(model: Transformer, has_graphs: bool) -> None:
    got = logits_of(model, has_graphs)
    with gpu.without():
        expected = logits_of(model, False)
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_an_engine_writes_what_torch_writes(model: Transformer) -> None:
    def written() -> dict[int, list[int]]:
        engine, found = Engine(model), dict[int, list[int]]()
        for ids in PROMPTS[:2]:
            engine.add(Request(tuple(ids), SamplingParams(max_tokens=3)))
        while not engine.is_idle:
            for event in engine.step():
                if event.token_id is not None:
                    found.setdefault(event.request, []).append(event.token_id)
        assert engine.stats.expert_tokens_LE.sum() > 0
        return found

    got = written()
    with gpu.without():
        assert got == written()


def test_a_cache_that_moves_makes_its_graphs_anew(model: Transformer) -> None:
    runner = Runner(model)
    assert isinstance(runner._graphs, DecodeGraphs)
    runner.feed([(0, PROMPTS[0])])
    runner.step([3])
    before = dict(runner._graphs._steps)
    assert list(before) == [(1, 32)]
    runner.cache.reserve(1, 10 * 64 * max(1, runner.cache.n_pages))
    runner.step([4])
    assert runner._graphs._steps[1, 32] is not before[1, 32]


def test_a_short_text_does_not_move_the_cache(model: Transformer) -> None:
    """A text of 200 tokens once moved a cache of one page three times, and each time its graphs were made anew."""
    runner = Runner(model)
    before = runner.cache.store.addresses
    for n in (40, 60, 100):
        runner.feed([(0, [3] * n)])
    assert runner.cache.store.addresses is before
    assert Runner(model, n_pages=4).cache.n_pages == 4


def test_a_model_that_cannot_be_captured_decodes_without(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: object, pool: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("coterie.engine.graphs._Step.capture", refused)
    got = logits_of(model, True)
    assert "cannot be captured" in caplog.text and caplog.text.count("cannot be captured") == 1
    for a, b in zip(got, logits_of(model, False), strict=True):
        assert torch.equal(a, b)


def test_buckets() -> None:
    assert bucket(1, 1) == (1, 32) and bucket(9, 40) == (10, 64) and bucket(256, 512) == (256, 512)
    assert bucket(257, 1) is None


def test_a_card_reads_long_prompts_at_once() -> None:
    assert runner_module.CARD_CHUNK > runner_module.CHUNK
