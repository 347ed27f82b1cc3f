"""Where a picture may be written, told before the work that it is of."""

from pathlib import Path

from coterie.errors import RequestError

__all__ = ["check_plot"]


def check_plot(path: Path | None) -> None:
    """`RequestError` for a name that is no picture's, or a folder that is not there; matplotlib must be there too."""
    if path is None:
        return
    if path.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--plot {path}: expected a file name that ends with .svg or .png")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"--plot {path}: there is no folder {path.parent}; make it first")
    import matplotlib  # noqa: F401
