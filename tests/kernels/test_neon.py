"""The NEON kernels in an emulator: a whole model on them. Op by op, they are one `isa` of the tests of each kernel."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.engine import native_pass
from coterie.engine.runner import Runner
from coterie.kernels import cpu_choice
from coterie.model import Transformer
from coterie.quant.formats import FORMATS
from coterie.quant.layers import install
from coterie.quant.round_to_nearest import round_to_nearest
from coterie.quant.tensor import alternate_halves


@pytest.fixture
def neon(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The emulated kernels in use, one call an operation."""
    state = cpu_choice.state()
    for field, value in {"module": emulated, "name": "neon", "n_threads": 0}.items():
        monkeypatch.setattr(state, field, value)
    monkeypatch.setattr(native_pass.NativePass, "of", lambda model: None)
    before = torch.get_num_threads()
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def packed(model: Transformer) -> Transformer:
    parts: dict[str, Any] = {}
    for name, t in model.tensors().items():
        if t.ndim == 1 or name.endswith("router"):
            parts[name] = t
        elif name.endswith("experts.gate_up"):
            parts |= {
                f"{name[:-8]}.{e}.gate_up": round_to_nearest(alternate_halves(w), FORMATS["int4"])
                for e, w in enumerate(t)
            }
        elif name.endswith("experts.down"):
            parts |= {f"{name[:-5]}.{e}.down": round_to_nearest(w, FORMATS["int3"]) for e, w in enumerate(t)}
        else:
            parts[name] = round_to_nearest(t, FORMATS["int8"])
    return install(Transformer(model.config, torch.float32, "meta"), parts)


def logits(model: Transformer, work: list[tuple[int, list[int]]]) -> Tensor:
    runner = Runner(model)
    return runner.logits(runner.feed(work).hidden_TD)


@pytest.mark.parametrize("kind", ["f32", "bf16", "packed"])
def test_a_model(neon: None, make_model: Callable[..., Transformer], kind: str) -> None:
    """Bitwise alone or in a batch, with one thread or several; and near the reference."""
    model = make_model(hidden_size=64, intermediate_size=96, num_hidden_layers=2, sliding_window=24)
    if kind == "bf16":
        routers = [b.feed_forward.router.weight.data for b in model.layers]
        model.to(torch.bfloat16).cache_dtype = torch.bfloat16
        for block, weight in zip(model.layers, routers, strict=True):
            block.feed_forward.router.weight.data = weight
    elif kind == "packed":
        model = packed(model)
    ids = [torch.randint(3, 259, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 3, 25)]
    torch.set_num_threads(1)
    alone = [logits(model, [(0, one)]) for one in ids]
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        assert torch.equal(logits(model, list(enumerate(ids))), torch.cat(alone))
    cpu_choice.state().name = "reference"
    expected = logits(model, [(0, ids[0])]).float()
    limit = {"f32": 1e-4, "bf16": 0.1, "packed": 0.1}[kind]  # the last: activations of 8 bits
    assert (alone[0].float() - expected).abs().mean() <= limit * expected.abs().mean()


def test_writing_beside_an_output_is_noticed(emulated: Any) -> None:
    """The guards around every blob work: an output that is too small ends the emulated program."""
    own = type(emulated)(emulated.program)
    a, out = torch.ones(8), torch.zeros(8)
    blobs = [(a.data_ptr(), 32, False), (a.data_ptr(), 32, False), (out.data_ptr(), 28, True)]
    with pytest.raises(AssertionError, match="crashed"):
        own._call(6, [0, 8], blobs)
    own.close()
