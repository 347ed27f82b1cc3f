"""Reading alone; what several ranks write is in `test_sharded_state.py`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coterie.errors import CheckpointError
from coterie.train.shards import describe, read_shards


def test_files_of_one_rank_are_read_as_whole_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "step": torch.tensor(7.0), "r": torch.arange(3, dtype=torch.uint8)}
    save_file(tensors, tmp_path / "state.safetensors")
    found = read_shards(tmp_path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[n], t) for n, t in tensors.items())
    assert describe(tmp_path)["a"] == ((2, 3), torch.float32)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' has shape \[2, 3\], expected \[3, 2\]; start again with --fresh"):
        read_shards(tmp_path, lambda name, shape, dtype: torch.zeros(3, 2))


def test_parts_of_two_types_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"a": torch.zeros(2, dtype=torch.float64)}, tmp_path / "2.safetensors")
    with pytest.raises(CheckpointError, match="'a' is of another dtype"):
        read_shards(tmp_path)


def test_two_copies_of_a_part_are_refused(tmp_path: Path) -> None:
    for n in (1, 2):
        save_file({"a": torch.zeros(2)}, tmp_path / f"{n}.safetensors")
    with pytest.raises(CheckpointError, match="the parts of 'a' hold 4 of 2 elements"):
        read_shards(tmp_path)
