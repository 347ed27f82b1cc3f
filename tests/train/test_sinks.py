import errno
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import RecipeError, ResourceError
from coterie.train.sinks import TensorBoard

RECORD = {"step": 7, "loss": 2.5, "idle": 0, "valid": {"fr": 1.5}, "alarms": ["a", "b"], "name": "x"}


class FakeWriter:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.is_closed = False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.said.append((tag, scalar_value, global_step))

    add_text = add_scalar

    def close(self) -> None:
        self.is_closed = True


def test_numbers_become_curves_and_alarms_text() -> None:
    writer = FakeWriter()
    with TensorBoard(writer, Path("tensorboard")) as board:
        board.write(RECORD)
    assert writer.said == [("train/loss", 2.5, 7), ("train/idle", 0, 7), ("valid/fr", 1.5, 7), ("alarms", "a  \nb", 7)]
    assert writer.is_closed


def test_a_full_disk_is_one_sentence_that_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FakeWriter, "add_scalar", refuse)
    with pytest.raises(ResourceError, match="run/tensorboard cannot be written: the disk is full"):
        TensorBoard(FakeWriter(), Path("run/tensorboard")).write(RECORD)


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=r"pip install 'coterie\[train\]'"):
        TensorBoard.open(tmp_path / "tensorboard", 0)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_resumed_run_hides_what_it_trains_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps, loss in ((0, range(5), 1.0), (3, range(3, 6), 2.0)):
        with TensorBoard.open(tmp_path, first) as board:
            for step in steps:
                board.write({"step": step, "loss": loss})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        *((step, 1.0) for step in range(3)),
        *((step, 2.0) for step in range(3, 6)),
    ]
