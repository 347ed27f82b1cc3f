"""Recomputed blocks give the gradients that kept ones give, bit for bit, and route as they did the first time."""

import pytest
import torch

from coterie.config import ModelConfig
from coterie.model import Transformer
from coterie.routing import Assignment, Rows
from coterie.train.initialise import initialise
from coterie.train.objective import Objective
from coterie.train.recipe import Balance
from coterie.train.recompute import RecomputedBlock, recompute_blocks

TINY = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    objective = Objective(model, Balance(load=0.1, z=0.01))
    objective.backward(ids, ids.roll(-1, 1), n_tokens=48, share=1.0, generator=generator)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def model(dtype: torch.dtype) -> Transformer:
    made = Transformer(TINY, dtype)
    initialise(made, std=0.2, seed=0)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same_bits(dtype: torch.dtype) -> None:
    kept, again = gradients(model(dtype)), gradients(recompute_blocks(model(dtype)))
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_the_names_of_tensors_stay() -> None:
    plain = model(torch.float32)
    before = {name: t.clone() for name, t in plain.tensors().items()}
    after = recompute_blocks(plain).tensors()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()


class Wavering(torch.nn.Module):
    """A router that would send every token elsewhere the second time, as a near tie may; it counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x_TD: torch.Tensor, rows: Rows) -> Assignment:
        self.passes += 1
        ids = torch.full((len(x_TD), 1), self.passes % 2, dtype=torch.int32)
        ids = ids if rows.replay_ids_TK is None else rows.replay_ids_TK
        return Assignment(ids, torch.ones(len(x_TD), 1), torch.zeros(len(x_TD), 2), {})


def test_the_second_pass_replays_the_experts_of_the_first() -> None:
    made = model(torch.float32)
    router = Wavering()
    for layer in made.layers:
        layer.feed_forward.router = router
    gradients(recompute_blocks(made))
    assert (
        isinstance(made.layers[0], RecomputedBlock) and router.passes == 6
    )  # two layers: choosing, computing, and computing again
    for layer, used in zip(made.layers, (1, 1), strict=True):  # chosen in passes 1 and 3 of the router
        grad = layer.feed_forward.experts.gate_up.grad
        assert grad[used].abs().sum() > 0 and grad[1 - used].abs().sum() == 0


def test_noise_is_drawn_again_from_the_same_state() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[torch.Tensor] = []

        def forward(self, x_TD: torch.Tensor, rows: Rows) -> Assignment:
            self.drawn.append(torch.randn(3, generator=rows.generator))
            ids = torch.zeros(len(x_TD), 1, dtype=torch.int32)
            return Assignment(ids, torch.ones(len(x_TD), 1), torch.zeros(len(x_TD), 2), {})

    made = model(torch.float32)
    routers = [Noisy(), Noisy()]
    for layer, router in zip(made.layers, routers, strict=True):
        layer.feed_forward.router = router
    gradients(recompute_blocks(made))
    for router in routers:
        choosing, computing, again = router.drawn
        assert torch.equal(choosing, computing) and torch.equal(computing, again)
    assert not torch.equal(routers[0].drawn[0], routers[1].drawn[0])
