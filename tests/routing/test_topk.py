import math

import pytest
import torch

from coterie.routing import Rows, TopKRouter


def router(*rows: list[float], top_k: int = 2, renormalise: bool = True) -> TopKRouter:
    return TopKRouter(torch.tensor(rows), top_k, renormalise)


def test_the_answer_in_one_line() -> None:
    """Logits are x itself: the two largest of 1, 3, 2 are experts 1 and 2, with weights softmax(3, 2)."""
    routing = router([1.0, 0, 0], [0, 1, 0], [0, 0, 1])(torch.tensor([[1.0, 3, 2]]))
    assert routing.ids_TK.tolist() == [[1, 2]] and routing.ids_TK.dtype == torch.int32
    first = math.e / (math.e + 1)
    torch.testing.assert_close(routing.weights_TK, torch.tensor([[first, 1 - first]]))
    assert routing.logits_TE.tolist() == [[1, 3, 2]] and routing.losses == {}


def test_without_renormalising_weights_are_those_of_all_experts() -> None:
    routing = router([1.0, 0, 0], [0, 1, 0], [0, 0, 1], renormalise=False)(torch.tensor([[1.0, 3, 2]]))
    torch.testing.assert_close(routing.weights_TK, torch.tensor([1.0, 3, 2]).softmax(0)[[1, 2]][None])


@pytest.mark.parametrize("n_experts", [4, 8, 64])
def test_ties_go_to_the_lowest_id(n_experts: int) -> None:
    routing = TopKRouter(torch.zeros(n_experts, 3), 3)(torch.ones(5, 3))
    assert routing.ids_TK.tolist() == [[0, 1, 2]] * 5
    torch.testing.assert_close(routing.weights_TK, torch.full((5, 3), 1 / 3))


def test_logits_are_float32_in_a_bf16_model() -> None:
    weight, x = torch.randn(8, 16).bfloat16(), torch.randn(4, 16).bfloat16()
    routing = TopKRouter(weight, 2)(x)
    assert routing.logits_TE.dtype == routing.weights_TK.dtype == torch.float32
    torch.testing.assert_close(routing.logits_TE, x.float() @ weight.float().T)


def test_a_replay_goes_where_it_went_before() -> None:
    x, first = torch.randn(6, 3), router([1.0, 0, 0], [0, 1, 0], [0, 0, 1])
    replay = torch.tensor([[0, 2]] * 6)
    routing = first(x, Rows(replay_ids_TK=replay))
    assert routing.ids_TK.tolist() == replay.tolist()
    torch.testing.assert_close(routing.weights_TK, x[:, [0, 2]].softmax(-1))
