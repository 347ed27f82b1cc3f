from pathlib import Path

import pytest
import torch

from coterie.errors import CheckpointError, ResourceError
from coterie.train.state import load_state, save_state


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.arange(3.0)}, {"step": 7})
    tensors, meta = load_state(path)
    assert meta == {"step": 7} and torch.equal(tensors["a"], torch.arange(3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_full_disk_is_one_sentence_and_keeps_the_old_state(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails half-way, in the operating system."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(1)}, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError, match=r"state\.safetensors cannot be written"):
            save_state(path, {"a": torch.ones(10_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_shapes_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.0), "part": torch.arange(12.0).view(3, 4).T, "none": torch.zeros(0, 2)}
    save_state(tmp_path / "s", tensors, {})
    for name, tensor in load_state(tmp_path / "s")[0].items():
        assert tensor.shape == tensors[name].shape and torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is not a training state"):
        load_state(path)
