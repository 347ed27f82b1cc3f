"""Experts on two ranks against the same experts in one place: outputs, and every gradient."""

import pytest
import torch
from ranks import meeting, on_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor

from coterie.errors import RecipeError
from coterie.model.experts import Experts
from coterie.routing import Assignment
from coterie.train.expert_parallel import ExpertParallel
from coterie.train.mesh import Mesh

N_EXPERTS, WIDTH, INNER = 4, 6, 5
CASES = {
    "usual": [[[3, 0], [1, 2], [0, 1]], [[2, 3], [0, 2], [1, 3]]],
    "unused slots": [[[3, -1], [-1, -1], [0, 1]], [[2, 3], [0, -1], [-1, -1]]],
    "experts of rank 1 idle": [[[0, 1], [1, 0], [0, 1]], [[1, 0], [0, 1], [1, 0]]],
    "one expert has it all": [[[2, -1], [2, -1], [2, -1]], [[2, -1], [2, -1], [2, -1]]],
    "nothing to do": [[[-1, -1]] * 3, [[-1, -1]] * 3],
    "no token on rank 0": [[], [[2, 3], [0, 2], [1, 3]]],
}


def experts() -> Experts:
    generator = torch.Generator().manual_seed(0)
    shapes = (N_EXPERTS, 2 * INNER, WIDTH), (N_EXPERTS, WIDTH, INNER)
    return Experts(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))


def inputs(ids_TK: list[list[int]]) -> tuple[Tensor, Tensor, Assignment]:
    """Rows that are told by their ids alone, their weights, and the routing."""
    ids = torch.tensor(ids_TK, dtype=torch.int32).view(-1, 2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(ids), WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    weights = (weights * (ids >= 0)).requires_grad_()
    logits = torch.zeros(len(ids), N_EXPERTS, dtype=torch.float64)
    return x, weights, Assignment(ids, weights, logits, {})


def gradients(module: torch.nn.Module, ids_TK: list[list[int]]) -> list[Tensor]:
    """The output, then the gradients of rows, weights and both parameters of 1·y + y²."""
    x, weights, routing = inputs(ids_TK)
    y = module(x, routing)
    (y + y.square()).sum().backward()
    return [y.detach(), x.grad, weights.grad, module.gate_up.grad, module.down.grad]


def compare() -> None:
    with meeting(1, 2) as mesh:
        assert mesh.grid is not None
        for name, ids in CASES.items():
            parallel = ExpertParallel(experts(), mesh.grid["expert"])
            found = gradients(parallel, ids[mesh.rank])
            wanted = [gradients(experts(), part) for part in ids]
            for a, b in zip(found[:3], wanted[mesh.rank][:3], strict=True):
                torch.testing.assert_close(a, b, atol=1e-9, rtol=0, msg=name)
            for a, *parts in zip(found[3:], wanted[0][3:], wanted[1][3:], strict=True):
                assert isinstance(a, DTensor) and a.shape == parts[0].shape
                torch.testing.assert_close(a.full_tensor(), sum(parts), atol=1e-9, rtol=0, msg=name)
            with torch.no_grad():
                x, _, routing = inputs(ids[mesh.rank])
                torch.testing.assert_close(parallel(x, routing), found[0], atol=1e-9, rtol=0)


def test_outputs_and_gradients_are_those_of_experts_in_one_place() -> None:
    """Whoever gets no token still takes part: the test would hang, and then fail, if one waited for another."""
    on_ranks(2, compare, timeout=60)


def refuse() -> None:
    with meeting(1, 3) as mesh:
        assert mesh.grid is not None
        with pytest.raises(RecipeError, match="expert = 3 does not divide the 4 experts"):
            ExpertParallel(experts(), mesh.grid["expert"])


@pytest.mark.full
def test_experts_that_cannot_be_divided_are_refused() -> None:
    on_ranks(3, refuse)


def test_the_plan_of_the_docstring() -> None:
    """Two ranks of two experts: the pairs in the order of their experts, and where they are there."""
    parallel = ExpertParallel.__new__(ExpertParallel)
    torch.nn.Module.__init__(parallel)
    parallel.n_local, parallel.n_ranks = 2, 2
    pair_N, send, ids_N = parallel._plan(torch.tensor([[3, 0], [1, -1]]))
    assert (pair_N.tolist(), send, ids_N.tolist()) == ([1, 2, 0], [2, 1], [0, 1, 1])
    assert Mesh.single().grid is None
