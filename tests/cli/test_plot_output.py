from pathlib import Path
from xml.etree import ElementTree

import pytest

from coterie.analysis.section import Plot
from coterie.cli.plot_output import check_plot, write_plot
from coterie.errors import RequestError

PLOT = Plot("lines", "A title", "x", "y", [0.0, 1.0, 2.0], {"a": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize("name", ["p.svg", 'a "b" <c>.svg', "ü.SVG"])
def test_an_svg_is_whole_whatever_its_file_is_called(tmp_path: Path, name: str) -> None:
    """The name of the file stood in the picture's ids as it was."""
    write_plot(PLOT, tmp_path / name)
    assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_png_is_one(tmp_path: Path) -> None:
    write_plot(PLOT, tmp_path / "p.PNG")
    assert (tmp_path / "p.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    check_plot(None)
    check_plot(tmp_path / "p.svg")
    with pytest.raises(RequestError, match=r"ends with .svg or .png"):
        check_plot(tmp_path / "p.pdf")
    with pytest.raises(RequestError, match="there is no folder"):
        check_plot(tmp_path / "no" / "p.svg")
