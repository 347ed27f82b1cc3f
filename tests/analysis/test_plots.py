"""Pictures: well-formed, the same every time, their own ids, the page's ink; hostile names do no harm."""

import sys
from xml.dom import minidom

import pytest

from coterie.analysis.section import Plot

pytest.importorskip("matplotlib")

from coterie.analysis import plots

NAN = float("nan")
LINES = Plot(
    "lines", "Hit rate", "experts", "share", [2.0, 4.0, 8.0], {"LRU": [0.2, 0.5, 1.0], "LFU": [0.1, NAN, 1.0]},
    {"LRU": [0.1, 0.4, 1.0]}, {"LRU": [0.3, 0.6, 1.0]}, {"at random": 0.25},
)  # fmt: skip
BARS = Plot(
    "bars", "Share", "domain", "share", ["fr", "de"], {"0": [0.1, NAN], "1": [0.2, 0.3]}, references={"fair": 0.1}
)
HEAT = Plot("heatmap", "Pairs", "expert", "share", ["0", "1"], {"0": [0.0, NAN], "1": [0.5, 1.0]})
HOSTILE = Plot(
    "bars",
    "a $b_ & <c>\x00",
    "x\x1b[31m",
    "$",
    ["\n", "$x$", "中" * 99],
    {"_<s>": [1.0, 2.0, 3.0], "_": [1.0, 1.0, 1.0]},
)


@pytest.mark.parametrize("plot", [LINES, BARS, HEAT, HOSTILE], ids=["lines", "bars", "heatmap", "hostile"])
def test_each_kind_is_drawn_the_same_every_time(plot: Plot) -> None:
    text = plots.svg(plot, "one")
    minidom.parseString(text)
    assert text == plots.svg(plot, "one") and "<!DOCTYPE svg" in text
    assert plots.png(plot).startswith(b"\x89PNG") and plots.png(plot) == plots.png(plot)
    page = plots.both_svg(plot, "one")[0]
    minidom.parseString(page)
    assert page.startswith("<svg") and "currentColor" in page and "#010101" not in page and "#020202" not in page


def test_text_stays_text() -> None:
    text, hostile = plots.svg(LINES, "one"), plots.svg(HOSTILE, "one").replace("&gt;", ">")
    assert all(f">{word}</text>" in text for word in ("Hit rate", "LRU", "at random", "experts"))
    assert "a $b_ &amp; &lt;c>" in hostile and "_&lt;s>" in hostile


def test_two_pictures_of_one_page_share_no_ids() -> None:
    def ids(name: str) -> set[str]:
        document = minidom.parseString(plots.both_svg(LINES, name)[0])
        return {e.getAttribute("id") for e in document.getElementsByTagName("*") if e.hasAttribute("id")}

    assert ids("a") and not ids("a") & ids("b")
    text = plots.both_svg(LINES, "a")[0]
    assert all(f'id="{target}"' in text for target in [u.split(")")[0] for u in text.split("url(#")[1:]])


def test_a_large_heatmap_is_an_image_and_small() -> None:
    large = Plot("heatmap", "t", "x", "y", [str(i) for i in range(128)], {str(n): [0.5] * 128 for n in range(61)})
    assert "<image" in (text := plots.svg(large, "a")) and len(text) < 100_000


def test_a_long_title_is_broken_and_a_baseline_has_no_colour_of_its_own() -> None:
    plot = Plot(
        "lines", "word " * 20, "x", "y", [1.0, 2.0], {"chance": [0.1, 0.2], "LRU": [0.3, 0.4]}, baselines=("chance",)
    )
    text = plots.svg(plot, "one")
    assert max(map(len, [t.split("<")[0] for t in text.split(">") if "word" in t])) <= 60
    assert plots.COLOURS[0].lower() in text and plots.COLOURS[1].lower() not in text


def test_pyplot_is_not_touched() -> None:
    plots.svg(LINES, "one")
    assert "matplotlib.pyplot" not in sys.modules
