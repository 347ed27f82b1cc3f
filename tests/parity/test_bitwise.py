"""The promise that nobody else makes: the logits of a sequence have the same bits alone or in a batch, with one thread
or many, the prompt in one piece or in chunks, read or decoded. Within one instruction set, for every type and format.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.api import LanguageModel
from coterie.engine.runner import Runner
from coterie.kernels import cpu
from coterie.model import Transformer
from coterie.quant.formats import FORMATS, Format
from coterie.quant.layers import install
from coterie.quant.round_to_nearest import round_to_nearest
from coterie.quant.tensor import alternate_halves

NATIVE = [name for name in cpu.names() if name != "reference"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
COMMON = ["f32", "f16", "bf16", "int8", "int4", "int2"]
OTHERS = [name for name in FORMATS if name not in COMMON]
SHAPES = {  # a window shorter than prompts, chunks and blocks of keys; a width that torch shares among its threads
    "sparse": {},
    "sparse-window": {"sliding_window": 24},
    "dense": {"num_local_experts": None, "intermediate_size": 352},
    "dense-window": {"num_local_experts": None, "sliding_window": 24},
}
LENGTHS = (70, 5, 33, 1, 90)
VOCABULARY = 259
MakeModel = Callable[..., Transformer]

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")


def plain(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The same model in another type, except for the router."""
    routers = {name: p.data for name, p in model.named_parameters() if name.endswith("router.weight")}
    model.to(dtype).cache_dtype = dtype
    for name, data in routers.items():
        model.get_parameter(name).data = data.float()
    return model


def packed(model: Transformer, format: Format) -> Transformer:
    """The same model with every matrix in one format, the router and the norms in float32."""
    parts = {}
    for name, t in model.tensors().items():
        if t.ndim == 1 or name.endswith("router"):
            parts[name] = t
        elif "experts." in name:
            where, kind = name.rsplit(".", 1)
            for e, w in enumerate(t):
                w = alternate_halves(w) if kind == "gate_up" else w
                parts[f"{where}.{e}.{kind}"] = round_to_nearest(w, format)
        else:
            parts[name] = round_to_nearest(t, format)
    return install(Transformer(model.config, torch.float32, "meta"), parts)


@pytest.fixture(scope="module")
def model_of(make_model: MakeModel) -> Callable[[str, str], Transformer]:
    """(shape, kind) -> a model, made once."""
    made: dict[tuple[str, str], Transformer] = {}

    def get(shape: str, kind: str) -> Transformer:
        if (shape, kind) not in made:
            sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2} | SHAPES[shape]
            model = make_model(vocab_size=VOCABULARY, **sizes)
            made[shape, kind] = plain(model, DTYPES[kind]) if kind in DTYPES else packed(model, FORMATS[kind])
        return made[shape, kind]

    return get


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    g = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, VOCABULARY, (n,), generator=g).tolist() for n in lengths]


def read_alone(model: Transformer, ids: list[int], size: int = 512) -> Tensor:
    """Logits [T, V] of one sequence, `size` tokens a pass."""
    runner = Runner(model)
    return torch.cat([runner.logits(runner.feed([(0, ids[i : i + size])]).hidden_TD) for i in range(0, len(ids), size)])


def read_together(model: Transformer, all_ids: list[list[int]]) -> Tensor:
    runner = Runner(model)
    return runner.logits(runner.feed(list(enumerate(all_ids))).hidden_TD)


def decode_together(model: Transformer, all_ids: list[list[int]], n: int) -> list[Tensor]:
    """All but the last `n` tokens read, in two passes that cut the prompts anywhere; those decoded one at a time."""
    runner = Runner(model)
    for first, stop in ((0, 20), (20, 1000)):
        work = [(i, ids[: len(ids) - n][first:stop]) for i, ids in enumerate(all_ids)]
        work = [(slot, ids) for slot, ids in work if ids]
        runner.feed(work)
    return [runner.logits(runner.step([ids[len(ids) - n + i] for ids in all_ids]).hidden_TD) for i in range(n)]


def check_model(model: Transformer, threads: Callable[[int], None]) -> None:
    all_ids = prompts()
    with torch.inference_mode():
        threads(1)  # where the processors are busy, each small call of several threads waits for its turn
        alone = [read_alone(model, ids) for ids in all_ids]
        assert all(t.isfinite().all() for t in alone)
        for size in (1, 7, 64):
            assert torch.equal(read_alone(model, all_ids[0], size), alone[0]), f"in chunks of {size}"
        for n_threads in (1, 2, 3):
            threads(n_threads)
            assert torch.equal(read_together(model, all_ids), torch.cat(alone)), f"together, {n_threads} threads"
            assert torch.equal(read_alone(model, all_ids[2]), alone[2]), f"{n_threads} threads"
        threads(1)
        long = [i for i, ids in enumerate(all_ids) if len(ids) > 3]
        for back, logits in enumerate(decode_together(model, [all_ids[i] for i in long], 3)):
            expected = torch.stack([alone[i][back - 3] for i in long])
            assert torch.equal(logits, expected), f"decoded, {3 - back} from the end"


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COMMON)
def test_logits(
    name: str, shape: str, kind: str, model_of: Callable[..., Transformer], threads: Callable[[int], None]
) -> None:
    with cpu.use(name):
        check_model(model_of(shape, kind), threads)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kind", OTHERS)
def test_logits_in_the_other_formats(
    name: str, kind: str, model_of: Callable[..., Transformer], threads: Callable[[int], None]
) -> None:
    with cpu.use(name):
        check_model(model_of("sparse-window", kind), threads)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(("shape", "kind"), [("sparse", "bf16"), ("sparse-window", "int4"), ("dense", "int8")])
def test_completions(name: str, shape: str, kind: str, model_of: Callable[..., Transformer]) -> None:
    """Several prompts answered together: token ids and log-probabilities are those of each alone, to the bit."""
    model = LanguageModel(model_of(shape, kind))
    options = {"max_tokens": 12, "logprobs": 3}
    with cpu.use(name):
        together = model.generate_many(prompts(), **options)
        for ids, completion in zip(prompts(), together, strict=True):
            alone = model.generate(ids, **options)
            assert completion.token_ids == alone.token_ids
            assert completion.logprobs == alone.logprobs


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kind", COMMON)
def test_one_call_a_pass_is_bitwise_the_walk_through_modules(
    name: str, kind: str, model_of: Callable[..., Transformer]
) -> None:
    model = model_of("sparse-window", kind)
    with cpu.use(name), torch.inference_mode():
        fused, walked = Runner(model), Runner(model)
        assert fused._native is not None
        walked._native = None
        for ids in prompts((30, 1, 1, 12)):
            a, b = fused.feed([(0, ids)]), walked.feed([(0, ids)])
            assert torch.equal(a.hidden_TD, b.hidden_TD)
            for x, y in zip(a.routings, b.routings, strict=True):
                assert torch.equal(x.ids_TK, y.ids_TK) and torch.equal(x.weights_TK, y.weights_TK)


@pytest.mark.parametrize("kind", ["f32", "bf16", "int4"])
def test_any_batch(kind: str, model_of: Callable[..., Transformer]) -> None:
    """Slots at random, each fed at random, decoded at random: a row's logits are those of its sequence alone."""
    model, all_ids = model_of("sparse-window", kind), prompts((60, 60, 60, 60))
    with torch.inference_mode():
        alone = [read_alone(model, ids) for ids in all_ids]

    counts = st.lists(st.integers(0, 25), min_size=4, max_size=4)

    @settings(max_examples=25 if settings.default and settings.default.max_examples < 1000 else 300)
    @given(st.lists(st.one_of(counts, st.just("step")), min_size=1, max_size=6))
    def check(passes: list[list[int] | str]) -> None:
        runner, read = Runner(model), [0] * 4
        with torch.inference_mode():
            for one in passes:
                if one == "step":
                    if max(read) < 60:
                        logits = runner.logits(
                            runner.step([ids[n] for ids, n in zip(all_ids, read, strict=True)]).hidden_TD
                        )
                        assert torch.equal(logits, torch.stack([t[n] for t, n in zip(alone, read, strict=True)]))
                        read = [n + 1 for n in read]
                    continue
                work = [(i, all_ids[i][read[i] : read[i] + n]) for i, n in enumerate(one)]
                work = [(slot, ids) for slot, ids in work if ids]
                if not work:
                    continue
                logits = runner.logits(runner.feed(work).hidden_TD)
                expected = torch.cat([alone[slot][read[slot] : read[slot] + len(ids)] for slot, ids in work])
                assert torch.equal(logits, expected)
                for slot, ids in work:
                    read[slot] += len(ids)

    check()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_promises_nearly_as_much(shape: str, model_of: Callable[..., Transformer]) -> None:
    """Without native kernels: the same to 1e-5 of the largest logit."""
    model, all_ids = model_of(shape, "f32"), prompts()
    with cpu.use("reference"), torch.inference_mode():
        alone = torch.cat([read_alone(model, ids) for ids in all_ids])
        for other in (read_together(model, all_ids), torch.cat([read_alone(model, ids, 7) for ids in all_ids])):
            assert (other - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_instruction_sets_agree_with_the_reference(name: str, shape: str, model_of: Callable[..., Transformer]) -> None:
    """Bits may differ between them, numbers may not."""
    model, (ids, *_) = model_of(shape, "f32"), prompts()
    with torch.inference_mode():
        with cpu.use("reference"):
            expected = read_alone(model, ids)
        with cpu.use(name):
            found = read_alone(model, ids)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
