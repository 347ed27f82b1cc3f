"""Where a trace may be written: a new file, or one in place of an older trace."""

from pathlib import Path

from coterie.errors import DataError

__all__ = ["check_trace_output"]


def check_trace_output(path: Path) -> None:
    """`DataError` for a folder, a place without one, or a file that is something else and would be lost."""
    from coterie.analysis.trace_form import MAGIC

    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected the name of a file, such as {path / 'run.trace'}")
    if path.exists():
        with path.open("rb") as f:
            if f.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path} exists and is no trace; name another file, or remove it first")
