from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.model import Transformer
from coterie.model.attention import WholeSequences, window_mask


@pytest.mark.parametrize("window", [1, 2, 3, None])
def test_a_key_is_visible_where_0_to_window_away(window: int | None) -> None:
    query, key = torch.tensor([4, 2, 9]), torch.tensor([0, 1, 2, 3, 4, 9])
    mask = window_mask(query, key, window)
    assert mask.shape == (1, 3, 6)
    for i, q in enumerate(query.tolist()):
        for j, k in enumerate(key.tolist()):
            assert mask[0, i, j].item() is (0 <= q - k < (window or 1_000))


@pytest.mark.parametrize("window", [None, 4, 5])
def test_a_window_that_holds_the_sequence_is_causal_without_a_mask(window: int | None) -> None:
    k = torch.arange(2 * 4 * 1 * 3.0).view(8, 1, 3)
    (segment,) = WholeSequences(2, window).extend(0, k, k + 1)
    assert segment.is_causal and segment.mask_BSC is None and (segment.start, segment.stop) == (0, 8)
    assert segment.k_BCGP.shape == (2, 4, 1, 3) and torch.equal(segment.k_BCGP[1, 0], k[4])
    assert torch.equal(segment.v_BCGP[0, 3], k[3] + 1)


def test_a_shorter_window_is_a_mask() -> None:
    k = torch.zeros(8, 1, 2)
    (segment,) = WholeSequences(2, 3).extend(0, k, k)
    assert not segment.is_causal and segment.mask_BSC is not None
    assert segment.mask_BSC[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


def test_documents_are_a_mask_and_so_are_documents_in_a_window() -> None:
    k, documents_BS = torch.zeros(8, 1, 2), torch.tensor([[0, 0, 1, 1], [5, 5, 5, 5]])
    (segment,) = WholeSequences(2, None, documents_BS).extend(0, k, k)
    assert not segment.is_causal and segment.mask_BSC is not None
    assert segment.mask_BSC[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(segment.mask_BSC[1], torch.ones(4, 4, dtype=torch.bool).tril())
    (segment,) = WholeSequences(2, 2, documents_BS).extend(0, k, k)
    assert segment.mask_BSC is not None
    assert segment.mask_BSC[1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def hidden(model: Transformer, ids: list[int], documents: list[int] | None, window: int | None = None) -> Tensor:
    documents_BS = None if documents is None else torch.tensor([documents])
    cache = WholeSequences(1, window, documents_BS)
    return model(torch.tensor(ids), torch.arange(len(ids)), cache).hidden_TD


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_document_does_not_see_the_one_before_it(
    make_model: Callable[..., Transformer], window: int | None, with_gradients: bool
) -> None:
    model = make_model().double() if with_gradients else make_model()
    first, other, second = [7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24]
    documents = [0] * 3 + [1] * 5
    with torch.set_grad_enabled(with_gradients):
        alone = hidden(model, second, None, window)
        beside_first = hidden(model, first + second, documents, window)[3:]
        beside_other = hidden(model, other + second, documents, window)[3:]
        unmasked = hidden(model, first + second, None, window)[3:]
    torch.testing.assert_close(beside_first, beside_other, rtol=0, atol=1e-12 if with_gradients else 0)
    torch.testing.assert_close(beside_first, alone, rtol=0, atol=1e-5)  # rotary tables are float32
    assert (unmasked - alone).abs().max() > 1e-2
