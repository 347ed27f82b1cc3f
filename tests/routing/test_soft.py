from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.kernels.reference import gated_ffn
from coterie.model.experts import Experts
from coterie.model.moe import MoE
from coterie.routing import Mixture


@pytest.mark.parametrize("slots", [1, 3])
def test_the_layer_is_that_of_the_paper(slots: int, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    """Y = C · f(Dᵀ X) of each sequence by itself, f slot by slot."""
    router = make_router("soft", slots=slots)
    experts = Experts(torch.randn(4, 16, 6).double(), torch.randn(4, 6, 8).double())
    y_TD, routing = MoE(nn.Identity(), router, experts)(x_TD, rows_for(x_TD))
    assert isinstance(routing, Mixture) and routing.lengths_B == [6, 6]
    phi = functional.normalize(router.weight, dim=-1) * router.scale
    expected = []
    for x in x_TD.chunk(2):
        logits = functional.normalize(x, dim=-1) @ phi.T
        read = logits.softmax(0).T @ x
        of_slot = [(experts.gate_up[m // slots], experts.down[m // slots]) for m in range(4 * slots)]
        said = torch.cat([gated_ffn(read[m : m + 1], *matrices) for m, matrices in enumerate(of_slot)])
        expected.append(logits.softmax(1) @ said)
    torch.testing.assert_close(y_TD, torch.cat(expected))


def test_the_sides_sum_to_one(make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    mask_T = torch.tensor([True] * 5 + [False] + [False] * 6)
    routing = make_router("soft", slots=2)(x_TD, rows_for(x_TD, mask_T=mask_T))
    torch.testing.assert_close(routing.combine_TM.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(routing.dispatch_TM[:6].sum(0), torch.ones(8, dtype=torch.float64))
    assert (routing.dispatch_TM[5:] == 0).all()  # padding, and a sequence that is nothing else
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(12, dtype=torch.float64))
    assert (routing.ids_TK.sort(1).values == torch.arange(4)).all()
