"""The demo on a CUDA card beside the CPU: the same tokens, the same routing, nothing lost. Skipped without a card."""

import gzip
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import coterie
from coterie.api import LanguageModel
from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams
from coterie.engine.runner import Runner
from coterie.errors import ResourceError
from coterie.kernels import gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")

PROMPTS = ["Il était une fois", "def fibonacci(n):", "Am Anfang war", "The old man", "La casa de", "Quando il sole"]


@pytest.fixture(scope="module")
def on_cpu() -> LanguageModel:
    return coterie.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def on_card() -> LanguageModel:
    return coterie.load(device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def text_ids(on_cpu: LanguageModel) -> list[list[int]]:
    """Texts of the model's own, so that no data is needed."""
    written = on_cpu.generate_many(PROMPTS, max_tokens=250, temperature=0.8, seed=1)
    starts = [on_cpu.tokenizer.encode(prompt, bos=True) for prompt in PROMPTS]
    return [[*start, *text.token_ids] for start, text in zip(starts, written, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def kernels_are_there() -> Iterator[None]:
    assert gpu.problem() is None
    yield


def test_greedy_tokens_are_those_of_the_cpu(on_cpu: LanguageModel, on_card: LanguageModel) -> None:
    for prompt in PROMPTS[:3]:
        expected = on_cpu.generate(prompt, max_tokens=200)
        assert on_card.generate(prompt, max_tokens=200).token_ids == expected.token_ids


def test_decoded_together_they_are_the_same(on_card: LanguageModel) -> None:
    alone = [on_card.generate(prompt, max_tokens=60).token_ids for prompt in PROMPTS]
    assert [c.token_ids for c in on_card.generate_many(PROMPTS, max_tokens=60)] == alone


def test_logits_in_float32(on_cpu: LanguageModel, on_card: LanguageModel, text_ids: list[list[int]]) -> None:
    for ids in text_ids:
        expected = on_cpu.logits(ids)
        assert float((on_card.logits(ids) - expected).norm() / expected.norm()) < 1e-4


@pytest.fixture(scope="module")
def held_out_ids(on_cpu: LanguageModel) -> list[list[int]]:
    """Beginnings of texts that the model has not seen."""
    if "COTERIE_DATA" not in os.environ:
        pytest.skip("COTERIE_DATA is not set: no held-out text")
    found = []
    for path in sorted((Path(os.environ["COTERIE_DATA"]) / "text").glob("*.valid.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in itertools.islice(lines, 3)]
        found += [on_cpu.tokenizer.encode(text, bos=True)[:512] for text in texts]
    return found


def test_bfloat16_agrees(on_cpu: LanguageModel, held_out_ids: list[list[int]]) -> None:
    text_ids, in_16_bits = held_out_ids, coterie.load(device="cuda", dtype="bfloat16")
    got = torch.cat([in_16_bits.logits(ids) for ids in text_ids]).double().log_softmax(-1)
    expected = torch.cat([on_cpu.logits(ids) for ids in text_ids]).double().log_softmax(-1)
    same = float((got.argmax(-1) == expected.argmax(-1)).float().mean())
    divergence = float((expected.exp() * (expected - got)).sum(-1).mean())
    print(f"bfloat16: {same:.4f} of the top tokens agree, mean KL {divergence:.2e}")
    assert same >= 0.98 and divergence <= 1e-3


def test_the_kernels_say_what_torch_says(on_card: LanguageModel, text_ids: list[list[int]]) -> None:
    got = on_card.logits(text_ids[0])
    with gpu.without():
        expected = on_card.logits(text_ids[0])
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_a_graph_says_what_its_modules_say(on_card: LanguageModel, text_ids: list[list[int]]) -> None:
    def steps(has_graphs: bool) -> list[torch.Tensor]:
        runner = Runner(on_card.model)
        if not has_graphs:
            runner._graphs = None
        found = []
        runner.feed([(slot, ids[:40]) for slot, ids in enumerate(text_ids)])
        for at in range(40, 50):
            output = runner.step([ids[at] for ids in text_ids])
            found.append(runner.logits(output.hidden_TD).clone())
        assert not has_graphs or (runner._graphs is not None and runner._graphs._steps)
        return found

    for got, expected in zip(steps(True), steps(False), strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_routing_is_the_cpu_s(on_cpu: LanguageModel, on_card: LanguageModel) -> None:
    expected = on_cpu.generate(PROMPTS[0], max_tokens=30, routing=True).routing
    got = on_card.generate(PROMPTS[0], max_tokens=30, routing=True).routing
    assert expected is not None and got is not None
    assert torch.equal(got.experts, expected.experts) and torch.allclose(got.weights, expected.weights, atol=1e-4)


def test_sampling_is_the_cpu_s(on_cpu: LanguageModel, on_card: LanguageModel) -> None:
    options = {"max_tokens": 60, "temperature": 0.7, "top_p": 0.9, "seed": 11}
    expected = on_cpu.generate_many(PROMPTS, **options)
    got = on_card.generate_many(PROMPTS, **options)
    assert sum(a.token_ids == b.token_ids for a, b in zip(got, expected, strict=True)) >= len(PROMPTS) - 1


@pytest.mark.parametrize("type_", ["int8", "int4", "int3", "fp8"])
def test_packed_weights_on_the_card(type_: str, on_cpu: LanguageModel, text_ids: list[list[int]]) -> None:
    packed = coterie.load(device="cuda", quantize=type_)
    oracle = coterie.load(device="cpu", quantize=type_) if type_ != "fp8" else on_cpu
    got, expected = packed.logits(text_ids[0]), oracle.logits(text_ids[0])
    most = {"int8": 0.02, "int4": 0.03, "int3": 0.05, "fp8": 0.1}[type_]  # activations are 16 bits wide here
    assert float((got - expected).norm() / expected.norm()) < most


def test_out_of_memory_fails_one_request(on_card: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(on_card.model, on_card.tokenizer)
    feed = engine.runner.feed

    def scarce(work, edits=None):  # type: ignore[no-untyped-def]
        if any(len(ids) > 100 for _, ids in work):
            torch.empty(1 << 60, dtype=torch.uint8, device="cuda")
        return feed(work, edits)

    monkeypatch.setattr(engine.runner, "feed", scarce)
    params = SamplingParams(max_tokens=5)
    for n in (10, 200, 20):
        engine.add(Request((1,) * n, params))
    ended = {}
    while not engine.is_idle:
        for event in engine.step():
            if event.finish_reason is not None:
                ended[event.request] = event.cause
    assert isinstance(ended[1], ResourceError) and "memory" in str(ended[1])
    assert ended[0] is None and ended[2] is None
