import pytest
import torch

from coterie.train.muon import orthogonalise, scaled_update


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (3, 16, 8)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * 1e-3))
    assert values.min() > 0.4 and values.max() < 1.3


def test_directions_stay() -> None:
    """The orthogonal factor of a matrix keeps its singular vectors: U·Vᵀ of U·S·Vᵀ."""
    torch.manual_seed(1)
    matrix = torch.randn(6, 10)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.95


def test_fused_rows_are_matrices_of_their_own() -> None:
    torch.manual_seed(2)
    small, large = torch.randn(4, 8), 1e4 * torch.randn(8, 8)
    fused = scaled_update(torch.cat((small, large)), (4, 8))
    assert torch.equal(fused[:4], scaled_update(small)) and torch.equal(fused[4:], scaled_update(large))


def test_an_update_has_adams_size() -> None:
    torch.manual_seed(3)
    rms = scaled_update(torch.randn(64, 64)).square().mean().sqrt()
    assert 0.12 < rms < 0.25
