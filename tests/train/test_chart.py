import xml.etree.ElementTree as ElementTree

import pytest

from coterie.train.chart import Curve, line_chart, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(curves: list[Curve], **options: tuple[float, float]) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(curves, title="a < b", x_label="steps", y_label="loss", **options))


def test_a_curve_goes_from_corner_to_corner() -> None:
    root = drawn([Curve("down", [(0, 4.0), (10, 2.0)])])
    lines = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("fill") == "none" and " L" in str(p.get("d"))]
    assert lines == ["M64.0 40.0 L560.0 370.0"]
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"a < b", "steps", "loss", "down", "0", "10", "2", "4"} <= set(texts)


def test_bands_ranges_and_many_curves() -> None:
    curves = [Curve(f"run {i}", [(0, i), (1, i + 1)], band=[(0, i - 1, i + 1), (1, i, i + 2)]) for i in range(20)]
    root = drawn(curves, y_range=(0.0, 5.0))
    assert sum(p.get("fill-opacity") == "0.18" for p in root.iter(f"{SVG}path")) == 20
    styles = {(p.get("stroke"), p.get("stroke-dasharray")) for p in root.iter(f"{SVG}path") if p.get("stroke-width")}
    assert len(styles) == 20


@pytest.mark.parametrize("points", [[], [(3, 1.0)], [(0, float("nan")), (1, 2.0)]])
def test_few_points_are_no_fault(points: list[tuple[float, float]]) -> None:
    assert drawn([Curve("x", points)]) is not None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.23, 1.31, [1.24, 1.26, 1.28, 1.3]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
