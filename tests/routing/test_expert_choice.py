from collections.abc import Callable

import torch

from coterie.routing.balance import expert_counts


def test_each_expert_takes_the_tokens_that_want_it_most(make_router: Callable) -> None:
    """Four tokens, two each; logits are x. Expert 0's column of the softmax is largest at tokens 0 and 1."""
    router = make_router("expert_choice", top_k=2)
    router.weight.data = torch.eye(4, dtype=torch.float64)
    x_TD = torch.tensor([[5.0, 0, 0, 0], [4.0, 0, 0, 0], [0, 3.0, 2.0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    routing = router(x_TD)
    assert expert_counts(routing).tolist() == [2, 2, 2, 2]
    assert routing.ids_TK.tolist() == [[0, -1, -1], [0, -1, -1], [1, 2, 3], [3, 1, 2]]
    share_TE = x_TD.softmax(-1)
    torch.testing.assert_close(routing.weights_TK[0], torch.stack([share_TE[0, 0], *torch.zeros(2).double()]))


def test_a_token_may_have_no_expert(make_router: Callable) -> None:
    router = make_router("expert_choice", top_k=1)
    x_TD = torch.zeros(8, 6, dtype=torch.float64)
    assert (router(x_TD).ids_TK >= 0).any(1).tolist() == [True] * 2 + [False] * 6
