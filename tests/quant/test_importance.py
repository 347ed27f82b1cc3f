"""What is noted of a pass, checked by hand on a router that is forced, and that the pass stays what it was."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.quant.importance import ENOUGH_TOKENS, Importance, ObservedExperts, ObservedLinear, observe
from coterie.routing import Assignment


def test_means_are_of_squares() -> None:
    importance = Importance()
    importance.add("a", torch.tensor([[1.0, 2.0], [3.0, 0.0]]).repeat(ENOUGH_TOKENS // 2, 1))
    found = importance.of("a")
    assert found is not None and found.tolist() == [5.0, 2.0] and importance.counts == {"a": ENOUGH_TOKENS}
    assert importance.of("b") is None


def test_an_expert_sees_its_own_tokens_only(make_model: Callable[..., Transformer]) -> None:
    experts = make_model().layers[0].feed_forward.experts
    importance = Importance()
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1]] * 150 + [[2, -1]] * 50, dtype=torch.int32)
    routing = Assignment(ids, torch.full((200, 2), 0.5), torch.zeros(200, 4), {})
    with torch.no_grad():
        y = ObservedExperts(experts, "layers.0.moe.experts", importance)(x, routing)
        assert torch.equal(y, experts(x, routing))
    assert importance.coverage() == {"layers.0": [150, 150, 50, 0]}
    assert importance.starved() == ["layers.0.moe.experts.2", "layers.0.moe.experts.3"]
    assert importance.of("layers.0.moe.experts.2.down") is None
    seen = importance.of("layers.0.moe.experts.1.gate_up")
    assert seen is not None and torch.allclose(seen, x[:150].square().mean(0))
    gate, up = functional.linear(x[:150], experts.gate_up[1]).chunk(2, -1)
    inner = importance.of("layers.0.moe.experts.1.down")
    assert inner is not None and torch.allclose(inner, (functional.silu(gate) * up).square().mean(0), rtol=1e-4)


def test_observing_changes_no_result(make_model: Callable[..., Transformer]) -> None:
    for experts in (4, None):
        model, importance = make_model(num_local_experts=experts), Importance()
        ids = torch.arange(150)
        with torch.inference_mode():
            before = model(ids, ids, WholeSequences(1, None)).hidden_TD
            for i, block in enumerate(model.layers):
                observe(block, f"layers.{i}", importance)
            after = model(ids, ids, WholeSequences(1, None)).hidden_TD
        assert torch.equal(before, after)
        kinds = {name.split(".", 2)[2] for name in importance.counts if name.startswith("layers.1.")}
        ff = {"feed_forward.gate", "feed_forward.up", "feed_forward.down"}
        ff = ff if experts is None else {f"moe.experts.{e}.{m}" for e in range(4) for m in ("gate_up", "down")}
        assert kinds == {f"attention.{m}" for m in "qkvo"} | ff


def test_a_linear_is_noted_under_every_name_it_is_made_of() -> None:
    importance = Importance()
    ObservedLinear(torch.nn.Identity(), ("q", "k"), importance)(torch.ones(3, 2))
    assert importance.counts == {"q": 3, "k": 3}


def test_saved_and_loaded(tmp_path: Path) -> None:
    importance = Importance()
    importance.add("layers.0.moe.experts.0.down", torch.randn(300, 8))
    importance.add("layers.0.moe.experts.1.down", torch.empty(0, 8))
    importance.save(tmp_path / "x.safetensors")
    back = Importance.load(tmp_path / "x.safetensors")
    assert back.counts == importance.counts and back.starved() == importance.starved()
    assert all(torch.equal(back.sums[name], t) for name, t in importance.sums.items())
