"""Pictures of a command: what is wrong with their file is told before the work, and they are written after it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.analysis.section import Plot

__all__ = ["check_plot", "write_plot"]


def check_plot(path: Path | None) -> None:
    """`RequestError` for a name that is no picture's, or a folder that is not there; matplotlib must be there too."""
    if path is None:
        return
    if path.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--plot {path}: expected a file name that ends with .svg or .png")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"--plot {path}: there is no folder {path.parent}; make it first")
    import matplotlib  # noqa: F401


def write_plot(plot: "Plot", path: Path) -> None:
    """As the name of the file says; at once or, where the disk is full, not at all."""
    from coterie.analysis.plots import png, svg
    from coterie.checkpoint.atomic import disk_errors, new_file

    picture = png(plot) if path.suffix.lower() == ".png" else svg(plot, _name(path)).encode()
    with disk_errors(path), new_file(path) as file:
        file.write(picture)


def _name(path: Path) -> str:
    """Of the picture's ids, which are attributes: a file may be called anything."""
    return re.sub(r"[^\w-]", "-", path.stem, flags=re.ASCII)
