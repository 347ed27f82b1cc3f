from pathlib import Path

import pytest
import torch

from coterie.errors import CheckpointError
from coterie.train.state import load_state, save_state


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.arange(3.0)}, {"step": 7})
    tensors, meta = load_state(path)
    assert meta == {"step": 7} and torch.equal(tensors["a"], torch.arange(3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_failed_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(1)}, {"step": 1})

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coterie.train.state.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_state(path, {"a": torch.ones(1)}, {"step": 2})
    assert load_state(path)[1] == {"step": 1}


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is not a training state"):
        load_state(path)
