"""Where the records of a run go beside log.jsonl: TensorBoard, when the recipe says `[run] tensorboard = true`.

A resumed run trains the steps after its last saved state again; `purge_step` makes TensorBoard hide what an earlier
process wrote of them, as `train/log.py` takes them out of log.jsonl.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from coterie.checkpoint.atomic import disk_errors
from coterie.errors import RecipeError

__all__ = ["TensorBoard", "require_tensorboard"]


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def add_text(self, tag: str, text_string: str, global_step: int) -> None: ...
    def close(self) -> None: ...


def require_tensorboard() -> None:
    """`RecipeError` where the tensorboard package is missing: to be asked before hours of other work."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise RecipeError(
            "[run] tensorboard is true and the Python package tensorboard is not installed; install it with "
            "pip install 'coterie[train]', or leave the key out: log.jsonl holds the same numbers"
        ) from None


class TensorBoard:
    """Every number of a record as a curve, in groups as they come (`valid/fr.valid`), alarms as text."""

    def __init__(self, writer: _Writer, folder: Path):
        self._writer, self._folder = writer, folder

    @classmethod
    def open(cls, folder: Path, first: int) -> "TensorBoard":
        """Write into `folder` from step `first` on."""
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        with disk_errors(folder):
            return cls(SummaryWriter(str(folder), purge_step=first), folder)

    def write(self, record: dict[str, Any]) -> None:
        """`ResourceError` where the disk refused this or an earlier record: the package writes in a thread."""
        with disk_errors(self._folder):
            self._write(record, int(record["step"]))

    def _write(self, record: dict[str, Any], step: int) -> None:
        for key, value in record.items():
            if key == "alarms":
                self._writer.add_text(key, "  \n".join(value), step)
            elif isinstance(value, dict):
                for name, number in value.items():
                    self._number(f"{key}/{name}", number, step)
            elif key != "step":
                self._number(f"train/{key}", value, step)

    def _number(self, tag: str, value: Any, step: int) -> None:
        if isinstance(value, int | float):
            self._writer.add_scalar(tag, value, step)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
