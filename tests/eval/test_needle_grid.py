import pytest

from coterie.eval.needle_grid import grid_sections, middle_sentence
from coterie.eval.task import Item


def judged(share: dict[int, float], n: int = 100, length: int = 64) -> list[tuple[Item, dict[str, float]]]:
    """n prompts of each depth, that share of them right."""
    found = []
    for depth, right in share.items():
        for i in range(n):
            row = {"depth": depth, "length": length, "guess": 1e-5, "candidates": 10}
            value = float(i < right * n)
            found.append((Item(f"{depth}/{i}", (), row), {"exact": value, "ranked": 1.0, "rank": 1.0}))
    return found


def test_depths_down_and_lengths_across() -> None:
    cells = [*judged({0: 1.0, 50: 0.5}, 4), *judged({0: 0.25, 50: 0.0}, 4, 128)]
    exact, ranked = grid_sections("passkey", cells)
    assert exact.key == "passkey-exact" and exact.columns == ("depth", "64", "128")
    assert exact.rows == (("0 % deep", 1.0, 0.25), ("50 % deep", 0.5, 0.0))
    plot = exact.plots[0]
    assert plot.kind == "heatmap" and plot.x == ["64", "128"] and plot.series["50 % deep"] == [0.5, 0.0]
    assert "43.8% of 16 prompts of up to 128 tokens (chance 1e-05)" in exact.sentence
    assert ranked.facts["share"] == 1 and "(chance 10.0%)" in ranked.sentence


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ({0: 0.9, 25: 0.3, 50: 0.2, 100: 0.95}, "so the middle is harder"),
        ({0: 0.1, 50: 0.9, 100: 0.1}, "so the middle is easier"),
        ({0: 0.5, 50: 0.52, 100: 0.5}, "no difference that so many prompts could show"),
        ({0: 1.0, 50: 1.0}, "no difference"),
        ({50: 1.0}, "too few depths"),
    ],
)
def test_lost_in_the_middle_or_not(share: dict[int, float], expected: str) -> None:
    assert expected in middle_sentence(judged(share), "exact")
