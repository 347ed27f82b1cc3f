"""The losses of a step are the same however it is cut into micro-batches, and every router trains through them."""

from typing import Any

import pytest
import torch

from coterie.config import ModelConfig
from coterie.model import Transformer
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.train.initialise import initialise
from coterie.train.objective import Objective
from coterie.train.recipe import Balance

IDS = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))
TARGETS = IDS.roll(-1, 1)


def model(**fields: Any) -> Transformer:
    shape = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    made = Transformer(ModelConfig(**shape | fields), torch.float32)
    initialise(made, std=0.2, seed=0)
    return made


def step(made: Transformer, n_micro: int, targets: torch.Tensor = TARGETS, **balance: Any) -> Objective:
    objective = Objective(made, Balance(**balance))
    n_tokens = int((targets >= 0).sum())
    for i, (ids, wanted) in enumerate(zip(IDS.chunk(n_micro), targets.chunk(n_micro), strict=True)):
        generator = torch.Generator().manual_seed(i)
        objective.backward(ids, wanted, n_tokens=n_tokens, share=1 / n_micro, generator=generator)
    return objective


def gradients(made: Transformer) -> list[torch.Tensor]:
    return [p.grad for p in made.parameters() if p.grad is not None]


@pytest.mark.parametrize("n_micro", [2, 4])
def test_scope_sequence_and_cross_entropy_do_not_see_the_micro_batches(n_micro: int) -> None:
    whole, cut = model(), model()
    one = step(whole, 1, scope="sequence", load=0.5, z=0.1).measures()
    many = step(cut, n_micro, scope="sequence", load=0.5, z=0.1).measures()
    assert many == pytest.approx(one, rel=1e-5)
    for a, b in zip(gradients(whole), gradients(cut), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


UNEVEN = TARGETS.where(torch.arange(16) < torch.tensor([[16], [3], [9], [16]]), -1)  # as masked documents leave them


@pytest.mark.parametrize("n_micro", [2, 4])
def test_every_counted_token_weighs_the_same_where_micro_batches_have_unlike_many(n_micro: int) -> None:
    whole, cut = model(), model()
    one = step(whole, 1, UNEVEN, scope="sequence", load=0.5, z=0.1).measures()
    many = step(cut, n_micro, UNEVEN, scope="sequence", load=0.5, z=0.1).measures()
    assert many == pytest.approx(one, rel=1e-5)
    for a, b in zip(gradients(whole), gradients(cut), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scope_global_does_not_see_ranks_with_unlike_many_counted_tokens() -> None:
    """Two ranks, one after the other, that know the load of both."""
    whole, cut = model(), model()
    counts_LE = torch.stack(step(whole, 1, UNEVEN, scope="global", load=0.5, z=0.1).counts)
    n_tokens = int((UNEVEN >= 0).sum())
    for ids, wanted in zip(IDS.chunk(2), UNEVEN.chunk(2), strict=True):
        rank = Objective(cut, Balance(scope="global", load=0.5, z=0.1), lambda _: counts_LE)
        rank.backward(ids, wanted, n_tokens=n_tokens, share=0.5, generator=torch.Generator())
    for a, b in zip(gradients(whole), gradients(cut), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scope_global_logs_the_exact_value_of_the_step() -> None:
    exact = [step(model(), n, scope="global", load=0.5).measures()["balance_exact"] for n in (1, 2, 4)]
    assert exact == pytest.approx([exact[0]] * 3, rel=1e-5)
    assert exact[0] == pytest.approx(step(model(), 1, scope="micro").measures()["balance"], rel=1e-5)


def test_padding_counts_nowhere() -> None:
    """A sequence that is padding alone changes neither loss nor gradient nor counts."""
    half, padded = model(), model()
    n_tokens = TARGETS[:2].numel()
    kept = Objective(half, Balance(scope="global", load=0.5, z=0.1))
    kept.backward(IDS[:2], TARGETS[:2], n_tokens=n_tokens, share=1.0, generator=torch.Generator())
    targets = TARGETS.clone()
    targets[2:] = -1
    both = step(padded, 1, targets, scope="global", load=0.5, z=0.1)
    assert both.measures() == pytest.approx(kept.measures(), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kept.counts, both.counts, strict=True))
    for a, b in zip(gradients(half), gradients(padded), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in ROUTER_KINDS if kind != "topk_all"])
def test_every_router_trains(kind: str) -> None:
    """A few steps of plain descent on one batch lower its loss, and the experts get gradients in every layer."""
    top_k = RouterConfig(kind=kind).top_k_for(4, 2)
    made = model(router={"kind": kind}, num_experts_per_tok=top_k, norm_topk_prob=top_k > 1)
    made.train()
    losses = []
    for _ in range(6):
        made.zero_grad()
        losses.append(step(made, 1, scope="sequence", z=0.001).measures()["loss"])
        for block in made.layers:
            assert block.feed_forward.experts.gate_up.grad.abs().sum() > 0
        with torch.no_grad():
            for p in made.parameters():
                if p.grad is not None:
                    p -= 0.5 * p.grad
    assert min(losses[-2:]) < losses[0] - 0.05


def test_the_balancing_bias_follows_the_load() -> None:
    made = model(router={"kind": "sigmoid_bias"})
    made.train()
    objective = step(made, 1, bias=0.01)
    before = [block.feed_forward.router.bias.clone() for block in made.layers]
    objective.after_update()
    for block, old, counts in zip(made.layers, before, objective.counts, strict=True):
        bias = block.feed_forward.router.bias
        assert bias.argmax() in torch.nonzero(counts < counts.mean()) and float(bias.mean()) == pytest.approx(
            0, abs=1e-7
        )
        assert not torch.equal(bias, old)


def test_a_coefficient_of_another_stack_is_translated() -> None:
    """transformers' loss has the ideal K = 2: its 0.01 pulls as ours of 0.02."""
    ours, theirs = model(), model()
    step(ours, 1, load=0.02, z=0.0)
    step(theirs, 1, load=0.01, z=0.0, convention="transformers")
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(a, b)
