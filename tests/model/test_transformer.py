from collections.abc import Callable

import pytest
import torch

from coterie.model import Transformer
from coterie.model.attention import WholeSequences


def logits(model: Transformer, ids: list[int], n_sequences: int = 1, shift: int = 0) -> torch.Tensor:
    S = len(ids) // n_sequences
    positions_T = torch.arange(S).repeat(n_sequences) + shift
    cache = WholeSequences(n_sequences, model.config.sliding_window)
    with torch.inference_mode():
        return model.head(model(torch.tensor(ids), positions_T, cache).hidden_TD)


def test_names_point_at_the_memory_the_model_uses(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    before = logits(model, [1, 2, 3])
    for name, tensor in model.tensors().items():
        old = tensor.clone()
        tensor.mul_(1.5).add_(0.1)
        assert not torch.allclose(logits(model, [1, 2, 3]), before, atol=1e-6), name
        tensor.copy_(old)
    assert torch.equal(logits(model, [1, 2, 3]), before)


@pytest.mark.parametrize("fields", [{}, {"num_local_experts": None}, {"tie_word_embeddings": True}])
def test_every_parameter_has_a_name(make_model: Callable[..., Transformer], fields: dict[str, object]) -> None:
    model = make_model(**fields)
    assert sum(t.numel() for t in model.tensors().values()) == sum(p.numel() for p in model.parameters())


def test_one_routing_for_each_sparse_layer(make_model: Callable[..., Transformer]) -> None:
    ids, positions = torch.tensor([1, 2]), torch.arange(2)
    output = make_model()(ids, positions, WholeSequences(1, None))
    assert [r.ids_TK.shape for r in output.routings] == [(2, 2)] * 3
    assert make_model(num_local_experts=None)(ids, positions, WholeSequences(1, None)).routings == []


def test_a_later_token_changes_no_earlier_one(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    torch.testing.assert_close(logits(model, [5, 6, 7, 8])[:3], logits(model, [5, 6, 7, 200])[:3], atol=1e-5, rtol=0)


def test_texts_of_a_batch_do_not_see_each_other(make_model: Callable[..., Transformer]) -> None:
    model = make_model(sliding_window=3)
    together = logits(model, [5, 6, 7, 8, 15, 16, 17, 18], n_sequences=2)
    alone = torch.cat([logits(model, [5, 6, 7, 8]), logits(model, [15, 16, 17, 18])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_only_distances_between_positions_matter(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    torch.testing.assert_close(logits(model, [5, 6, 7], shift=0), logits(model, [5, 6, 7], shift=40), atol=1e-4, rtol=0)
