import pytest
import torch

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
