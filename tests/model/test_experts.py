"""Experts that can be followed by hand: expert e multiplies by e + 1."""

import pytest
import torch
from torch import Tensor

from coterie.kernels import gated_ffn
from coterie.model.experts import Dispatch, Experts
from coterie.routing import Assignment

D = 3


def scaling_experts(n: int) -> Experts:
    """gate = 50·x, up = (e + 1)·x / 50 and down = 1/x can not be linear; so x is 1: silu(50) · (e + 1) / 50 = e + 1."""
    gate = 50.0 * torch.eye(D).expand(n, D, D)
    up = torch.stack([(e + 1) / 50.0 * torch.eye(D) for e in range(n)])
    return Experts(torch.cat((gate, up), 1), torch.eye(D).expand(n, D, D).clone())


def assignment(ids: list[list[int]], weights: list[list[float]]) -> Assignment:
    return Assignment(torch.tensor(ids, dtype=torch.int32), torch.tensor(weights), torch.zeros(len(ids), 4), {})


def test_the_worked_example_of_dispatch() -> None:
    d = Dispatch.of(torch.tensor([[1, 0], [1, -1]], dtype=torch.int32), 2)
    assert (d.pair_N.tolist(), list(d.counts), d.place_N.tolist()) == ([3, 1, 0, 2], [1, 1, 2], [2, 1, 3, 0])


@pytest.mark.parametrize(
    ("ids", "weights", "factor"),
    [
        ([0, 1], [0.5, 0.5], 1.5),
        ([3, 2], [0.25, 0.75], 3.25),
        ([2, -1], [1.0, 0.0], 3.0),
        ([-1, -1], [0.0, 0.0], 0.0),
        ([1, 1], [0.5, 0.25], 1.5),  # the same expert twice
    ],
)
@pytest.mark.parametrize("n_tokens", [1, 2, 5])
def test_the_weighted_sum(ids: list[int], weights: list[float], factor: float, n_tokens: int) -> None:
    y = scaling_experts(4)(torch.ones(n_tokens, D), assignment([ids] * n_tokens, [weights] * n_tokens))
    torch.testing.assert_close(y, torch.full((n_tokens, D), factor))


def naive(experts: Experts, x_TD: Tensor, routing: Assignment) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    for t in range(len(x_TD)):
        for e, w in zip(routing.ids_TK[t].tolist(), routing.weights_TK[t], strict=True):
            if e >= 0:
                y_TD[t] += w * gated_ffn(x_TD[t], experts.gate_up[e], experts.down[e])
    return y_TD


@pytest.mark.parametrize("n_tokens", [0, 1, 2, 17])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_against_one_token_and_one_expert_at_a_time(n_tokens: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(n_tokens * 10 + top_k)
    experts = Experts(torch.randn(6, 10, D, generator=generator), torch.randn(6, D, 5, generator=generator))
    ids = torch.randint(-1, 6, (n_tokens, top_k), generator=generator, dtype=torch.int32)
    weights = torch.rand(n_tokens, top_k, generator=generator) * (ids >= 0)
    routing = Assignment(ids, weights, torch.zeros(n_tokens, 6), {})
    x_TD = torch.randn(n_tokens, D, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(experts(x_TD, routing), naive(experts, x_TD, routing))


def test_the_output_has_the_inputs_dtype() -> None:
    experts = scaling_experts(4).bfloat16()
    for n in (1, 3):
        y = experts(torch.ones(n, D, dtype=torch.bfloat16), assignment([[0, 1]] * n, [[0.5, 0.5]] * n))
        assert y.dtype == torch.bfloat16 and y[0, 0].item() == pytest.approx(1.5, rel=0.01)
