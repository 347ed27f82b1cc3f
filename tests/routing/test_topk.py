import math

import pytest
import torch

from coterie.config import ModelConfig
from coterie.model import Transformer
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


def test_logits_are_float32_products_of_bf16_rows() -> None:
    """In bfloat16 the logits 1 and 1 + 2^-10 are equal, and the tie would go to expert 0."""
    routing = router([1.0, 0], [1 + 2**-10, 0], [0, 0], top_k=1)(torch.tensor([[1.0, 0]], dtype=torch.bfloat16))
    assert routing.logits_TE.dtype == routing.weights_TK.dtype == torch.float32
    assert routing.ids_TK.tolist() == [[1]]


def test_the_router_of_a_bf16_model_is_float32() -> None:
    config = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    model = Transformer(config, torch.bfloat16)
    assert {name for name, p in model.named_parameters() if p.dtype == torch.float32} == {
        "layers.0.feed_forward.router.weight"
    }


@pytest.mark.parametrize("renormalise", [True, False])
def test_gradient_of_the_weights(renormalise: bool) -> None:
    """Finite differences in float32, away from ties; the step is large because the router computes in float32."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def weights_of(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
        module = TopKRouter(torch.empty(5, 3), 2, renormalise)
        routing = torch.func.functional_call(module, {"weight": weight_ED.float()}, (x_TD.float(),))
        return routing.weights_TK.double()

    assert torch.autograd.gradcheck(weights_of, (x, weight), eps=1e-2, atol=2e-3)


def test_a_replay_goes_where_it_went_before() -> None:
    x, first = torch.randn(6, 3), router([1.0, 0, 0], [0, 1, 0], [0, 0, 1])
    replay = torch.tensor([[0, 2]] * 6)
    routing = first(x, Rows(replay_ids_TK=replay))
    assert routing.ids_TK.tolist() == replay.tolist()
    torch.testing.assert_close(routing.weights_TK, x[:, [0, 2]].softmax(-1))
