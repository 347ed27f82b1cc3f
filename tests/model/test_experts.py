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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_single_row_equals_the_same_row_among_others(dtype: torch.dtype, top_k: int) -> None:
    """One row takes a path without sorting; with gradients on, the general path takes it too."""
    generator = torch.Generator().manual_seed(top_k)
    parts = torch.randn(4, 12, D, generator=generator), torch.randn(4, D, 6, generator=generator)
    experts = Experts(*(p.to(dtype) for p in parts))
    ids = torch.stack([torch.randperm(4, generator=generator)[:top_k] for _ in range(5)]).int()
    weights, x_TD = torch.rand(5, top_k, generator=generator), torch.randn(5, D, generator=generator).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    together = experts(x_TD, Assignment(ids, weights, torch.zeros(5, 4), {})).detach()
    for t in range(5):
        routing = Assignment(ids[t : t + 1], weights[t : t + 1], torch.zeros(1, 4), {})
        with torch.no_grad():
            alone = experts(x_TD[t : t + 1], routing)
        torch.testing.assert_close(alone, together[t : t + 1], **tolerance)
        torch.testing.assert_close(experts(x_TD[t : t + 1], routing).detach(), together[t : t + 1], **tolerance)


def test_gradients_of_input_experts_and_weights() -> None:
    """Against finite differences; the weighted sum runs in float32, so the step is large."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0, 2], [2, 1], [1, -1]], dtype=torch.int32)
    shapes = (3, D), (3, 4, D), (3, D, 2), (3, 2)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(x_TD: Tensor, gate_up: Tensor, down: Tensor, weights_TK: Tensor) -> Tensor:
        module = Experts(torch.empty(3, 4, D), torch.empty(3, D, 2))
        used = weights_TK.float() * (ids >= 0)
        routing = Assignment(ids, used, torch.zeros(3, 3), {})
        named = {"gate_up": gate_up.float(), "down": down.float()}
        return torch.func.functional_call(module, named, (x_TD.float(), routing)).double()

    assert torch.autograd.gradcheck(run, inputs, eps=1e-2, atol=5e-3)


def test_an_expert_without_a_token_gets_a_gradient_of_zero() -> None:
    """None would keep it out of weight decay and, in distributed training, hang the others."""
    experts = Experts(torch.randn(3, 4, D), torch.randn(3, D, 2))
    experts(torch.randn(2, D), assignment([[0, 2]] * 2, [[0.5, 0.5]] * 2)).sum().backward()
    for p in experts.parameters():
        assert p.grad is not None and not p.grad[1].any() and p.grad[0].any() and p.grad[2].any()
