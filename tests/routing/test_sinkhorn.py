import torch

from coterie.routing.sinkhorn import sinkhorn


def test_rows_and_columns_sum_to_their_share() -> None:
    matrix = sinkhorn(torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1e-9)
    torch.testing.assert_close(matrix.sum(1), torch.full((30,), 1 / 30, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.full((5,), 1 / 5, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    matrix = sinkhorn(torch.tensor([[1000.0, 0.0], [0.0, -1000.0], [500.0, 400.0]]))
    assert matrix.isfinite().all()
    assert sinkhorn(torch.zeros(0, 4)).shape == (0, 4)


def test_an_expert_that_nobody_wants_by_far_gets_its_share_too() -> None:
    """Its column was all 0 in float64, the matrix not a number, and every token went to expert 0."""
    logits_TE = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    logits_TE[:, 2] -= 2000
    torch.testing.assert_close(sinkhorn(logits_TE).sum(0), torch.full((4,), 1 / 4), rtol=1e-3, atol=0)
