import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.errors import CheckpointError, ResourceError
from coterie.train.state import Checkpoints, checkpoint_folder, new_checkpoint


def save(run: Path, step: int, n: int = 3) -> None:
    """A checkpoint whose tensor says which step it is of."""
    Checkpoints(run).save(step, {"a": torch.full((n,), float(step))}, {"step": step})


def latest(run: Path) -> int:
    """The step of the newest good checkpoint, whose tensor must be of the same step."""
    state = Checkpoints(run).latest()
    assert state is not None
    tensors, meta = state
    assert bool((tensors["a"] == meta["step"]).all())
    return int(meta["step"])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0), "part": torch.arange(12.0).view(3, 4).T, "none": torch.zeros(0, 2),
        "nan": torch.tensor([float("nan"), -0.0]), "bf16": torch.randn(3).bfloat16(), "f16": torch.randn(3).half(),
        "f64": torch.randn(2).double(), "i64": torch.tensor([-1]), "i32": torch.tensor(7, dtype=torch.int32),
        "u8": torch.get_rng_state(), "bool": torch.tensor([True, False]),
    }  # fmt: skip
    Checkpoints(tmp_path).save(7, tensors, {"step": 7, "name": "é", "lr": 1e-3})
    state = Checkpoints(tmp_path).latest()
    assert state is not None and state[1] == {"step": 7, "name": "é", "lr": 1e-3} and state[0].keys() == tensors.keys()
    for name, tensor in state[0].items():
        assert tensor.dtype == tensors[name].dtype and tensor.shape == tensors[name].shape, name
        raw, wanted = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, tensors[name]))
        assert torch.equal(raw, wanted), name


def test_the_two_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (2, 4, 6, 6, 8):
        checkpoints.save(step, {"a": torch.zeros(1)}, {"step": step})
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
    assert sorted(p.name for p in checkpoint_folder(tmp_path, 8).iterdir()) == [
        "manifest.json", "meta.json", "state.safetensors"
    ]  # fmt: skip
    again = Checkpoints(tmp_path)
    again.save(10, {"a": torch.zeros(1)}, {"step": 10})
    assert len(names(tmp_path)) == 3  # it has verified no other one, so none goes
    again.save(12, {"a": torch.zeros(1)}, {"step": 12})
    assert names(tmp_path) == ["step-00000010", "step-00000012"]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def edit(**fields: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return write


SHA = "0" * 64


@pytest.mark.parametrize(
    ("file", "harm", "sentence"),
    [
        ("state.safetensors", flip, "state.safetensors is not what was written: its sha256 differs"),
        ("state.safetensors", cut, r"state.safetensors has \d+ bytes and was written with \d+"),
        ("state.safetensors", Path.unlink, "state.safetensors is missing"),
        ("meta.json", flip, "meta.json is not what was written"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", cut, "manifest.json is not valid JSON"),
        ("manifest.json", lambda p: p.write_bytes(b"\x80\x04pickle"), "manifest.json is not UTF-8"),
        ("manifest.json", edit(step=5), "manifest.json speaks of step 5 and its folder of step 4"),
        ("manifest.json", edit(files={}), "manifest.json lists no file"),
        ("manifest.json", edit(files={"meta.json": {"bytes": "many"}}), "'meta.json' is .*expected"),
        ("manifest.json", edit(files={"meta.json": {"bytes": 3, "sha256": SHA}}), "meta.json has .* written with 3"),
        ("manifest.json", edit(files={"../../../x": {"bytes": 3, "sha256": SHA}}), "points outside its folder"),
        ("manifest.json", edit(format="other"), "manifest.json is not the manifest of a training state"),
        ("manifest.json", edit(version=True), "manifest.json is not the manifest of a training state"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
    tmp_path: Path, file: str, harm: Callable[[Path], None], sentence: str
) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    harm(checkpoint_folder(tmp_path, 4) / file)
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.latest()
    assert state is not None and state[1] == {"step": 2} and len(checkpoints.passed_over) == 1
    shutil.rmtree(checkpoint_folder(tmp_path, 2))
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoints.latest()
    assert "no checkpoint of" in str(caught.value) and "--fresh" in str(caught.value)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    flip(checkpoint_folder(tmp_path, 4) / "state.safetensors")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is not None
    checkpoints.save(4, {"a": torch.full((3,), 4.0)}, {"step": 4})
    assert latest(tmp_path) == 4 and names(tmp_path) == ["step-00000002", "step-00000004"]


def test_a_later_format_is_refused_and_no_older_state_taken(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    edit(version=2)(checkpoint_folder(tmp_path, 4) / "manifest.json")
    with pytest.raises(CheckpointError, match="format version 2 and this program reads up to 1; update"):
        Checkpoints(tmp_path).latest()


def test_what_a_disk_gives_back_changed_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 2)
    changed = pytest.raises(CheckpointError, match=r"model\.bin is not what was written")
    with changed, new_checkpoint(tmp_path, 4, {"model.bin": SHA}) as folder:
        (folder / "model.bin").write_bytes(b"xyz")
    assert names(tmp_path) == ["step-00000002"] and latest(tmp_path) == 2


def test_a_killed_save_is_finished_or_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000006").rename(folder / "step-00000006.partial-0123abcd")  # whole: only the rename is missing
    (folder / "step-00000004").rename(folder / "step-00000008.partial-0123abcd")  # its manifest is of another step
    shutil.copytree(folder / "step-00000002", folder / "step-00000002.partial-4567")  # there is one already
    (folder / "step-00000010.partial-89ab").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert latest(tmp_path) == 2  # looking changes nothing
    Checkpoints(tmp_path).tidy()
    assert names(tmp_path) == ["notes.txt", "step-00000002", "step-00000006"] and latest(tmp_path) == 6


def test_the_single_file_of_an_earlier_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is a state as an earlier version .*--fresh"):
        Checkpoints(tmp_path).latest()
    save(tmp_path, 6)
    assert latest(tmp_path) == 6


def test_a_full_disk_is_one_sentence_and_keeps_the_old_state(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails half-way, in the operating system."""
    resource = pytest.importorskip("resource")
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError, match=r"step-00000002 cannot be written"):
            save(tmp_path, 2, n=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert latest(tmp_path) == 1 and names(tmp_path) == ["step-00000001"]


def test_whatever_write_the_disk_is_full_at_a_good_state_is_there(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[Any]]
) -> None:
    """Every one of them in turn, on the save of step k+1 beside k-1 and k: then k or k+1 is found."""
    found, n = [], 0
    while True:
        run = tmp_path / str(n)
        checkpoints = Checkpoints(run)
        for step in (1, 2):
            checkpoints.save(step, {"a": torch.full((3,), float(step))}, {"step": step})
        with full_disk(n) as disk:
            try:
                checkpoints.save(3, {"a": torch.full((3,), 3.0)}, {"step": 3})
            except ResourceError as e:
                assert "the disk is full" in str(e)
        found.append(latest(run))
        Checkpoints(run).tidy()
        assert latest(run) == found[-1]
        if disk.left >= 0:
            break
        n += 1
    assert n > 12 and found[0] == 2 and found[-1] == 3 and set(found) == {2, 3}
