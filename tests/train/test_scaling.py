"""The laws against figures that their papers print."""

import math

import pytest

from coterie.config import ModelConfig
from coterie.train.scaling import (
    CHINCHILLA,
    UPCYCLING,
    chinchilla_loss,
    chinchilla_optimum,
    effective_tokens,
    joint_moe_loss,
    predict_losses,
    upcycling_bounds,
)


@pytest.mark.parametrize(
    ("experts", "m", "mu", "n", "nu"),
    [
        (1, 30.3640, -0.1817, 53.9838, -0.1965),
        (2, 27.7982, -0.1780, 66.8401, -0.2065),
        (4, 24.8462, -0.1731, 87.7022, -0.2192),
        (8, 21.8330, -0.1676, 119.9126, -0.2338),
        (16, 19.0159, -0.1617, 167.5073, -0.2494),
        (32, 16.5424, -0.1557, 234.6726, -0.2652),
    ],
)
def test_joint_law_reduces_to_the_papers_table_4(experts: int, m: float, mu: float, n: float, nu: float) -> None:
    for parameters, tokens in ((1e8, 1e9), (1e9, 5e10)):
        expected = m * parameters**mu + n * tokens**nu + 1.3637
        assert joint_moe_loss(parameters, tokens, experts) == pytest.approx(expected, rel=2e-3)  # table 4 is rounded


def test_the_refit_agrees_with_twenty_tokens_per_parameter() -> None:
    for operations in (1e19, 5.76e23):
        n, tokens = chinchilla_optimum(operations)
        assert 6 * n * tokens == pytest.approx(operations)
        assert 15 < tokens / n < 27
        around = [chinchilla_loss(n * f, tokens / f) for f in (0.9, 1.0, 1.1)]
        assert min(around) == around[1]


def test_chinchilla_itself() -> None:
    assert chinchilla_loss(70e9, 1.4e12) == pytest.approx(1.97, abs=0.01)


def test_repeated_text_is_worth_less() -> None:
    assert effective_tokens(50.0, 100.0) == 50.0
    assert effective_tokens(400.0, 100.0) == pytest.approx(372, abs=1)
    assert effective_tokens(1e9, 100.0) == pytest.approx(100 * (1 + 15.387756))


def small(**fields: object) -> ModelConfig:
    shape = dict(vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return ModelConfig(**{**shape, "num_key_value_heads": 1, "max_position_embeddings": 64, **fields})  # type: ignore[arg-type]


def test_a_prediction_says_how_far_outside_its_law_it_is() -> None:
    first, second = predict_losses(small(), 1e6)
    assert any("fewer parameters than its smallest run" in clause for clause in first.beyond)
    assert any("5e+03 times fewer tokens" in clause for clause in first.beyond)
    assert any("2 of 8 is taken for 1 of 4" in clause for clause in second.beyond)
    assert math.isfinite(first.loss) and math.isfinite(second.loss)


def test_inside_its_range_a_dense_model_is_not_extrapolated() -> None:
    dense = ModelConfig(
        num_local_experts=None, num_hidden_layers=24, hidden_size=2048, intermediate_size=5632, num_key_value_heads=32
    )
    first, second = predict_losses(dense, 3e10)
    assert first.law is CHINCHILLA and first.beyond == () and second.beyond == ()
    assert 2.2 < first.loss < 2.8 and 2.2 < second.loss < 2.9
    assert predict_losses(dense, 3e10, 3e9)[0].loss > first.loss


def test_upcycling_bounds() -> None:
    below, above = upcycling_bounds(100e6)
    assert (round(below / 1e6), round(above / 1e6)) == (83, 400)
    assert {report.source.split(",")[0] for report in UPCYCLING} == {"arXiv 2409.02060", "arXiv 2212.05055"}
