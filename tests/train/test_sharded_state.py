"""Checkpoints of several ranks: read by another number of them, damaged, incomplete, never a pickle."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from ranks import meeting, on_ranks, tiny_trainer

from coterie.errors import CheckpointError
from coterie.train.mesh import Mesh
from coterie.train.recipe import Balance
from coterie.train.sharded_state import ShardedCheckpoints
from coterie.train.shards import read_shards
from coterie.train.state import checkpoint_folder


def go_on(run: Path, stretches: list[tuple[int, int, int]]) -> None:
    """Each stretch: data, expert, until; two ranks, none of which may unpickle what it reads."""
    for data, expert, until in stretches:
        with meeting(data, expert) as mesh:
            trainer = tiny_trainer(run, mesh, steps=12)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pickle, "load", _refuse)
                patch.setattr(torch, "load", _refuse)
                assert trainer.resume() == (run / "checkpoints").exists()
            trainer.run(until)


def _refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("something was unpickled")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on two ranks, two with each layout: the second resumed what the first had written."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    on_ranks(2, go_on, run, [(1, 2, 2), (2, 1, 4)])
    return run


def test_two_ranks_then_one_then_two_end_where_one_alone_ends(two_ranks: Path, tmp_path: Path) -> None:
    run = shutil.copytree(two_ranks, tmp_path / "run")
    names = sorted(path.name for path in checkpoint_folder(run, 4).iterdir())
    shards = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    assert names == ["manifest.json", "meta.json", "scalars.json", *shards]
    alone = tiny_trainer(run, steps=12)
    assert alone.resume() and alone.step == 4
    alone.run(8)
    assert (checkpoint_folder(run, 8) / "state.safetensors").exists()
    on_ranks(2, go_on, run, [(1, 2, 12)])
    whole = tiny_trainer(tmp_path / "whole", steps=12)
    whole.run()
    found, wanted = read_shards(checkpoint_folder(run, 12)), whole.optimizer.state()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.detach(), atol=1e-10, rtol=0)
        assert found[name].dtype == tensor.dtype
    logs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logs] == list(range(12))


def copy(two_ranks: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint_folder(two_ranks, 4), folder)
    return folder


def test_a_missing_shard_is_told(two_ranks: Path, tmp_path: Path) -> None:
    folder = copy(two_ranks, tmp_path / "a")
    (folder / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the parts of '.*' hold [\d,]+ of [\d,]+ elements; a file is missing"):
        read_shards(folder)


def change_header(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert old in raw and len(old) == len(new)
    path.write_bytes(raw.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"), [(b"saved_offsets", b"saved_offsetz"), (b"DCP_SHARDING_INFO", b"DCP_SHARDING_INFA")]
)
def test_a_header_that_does_not_say_where_parts_belong_is_refused(
    two_ranks: Path, tmp_path: Path, old: bytes, new: bytes
) -> None:
    folder = copy(two_ranks, tmp_path / "a")
    change_header(folder / "shard-00002-model-00001-of-00001.safetensors", old, new)
    with pytest.raises(CheckpointError, match=r"belongs is not to be read from it|the parts of"):
        read_shards(folder)


@pytest.mark.parametrize("value", ['{"a": 3}', '{"a": ["float32", "x"]}', '{"a": ["object", 1]}', "[]"])
def test_scalars_that_are_none_are_refused(two_ranks: Path, tmp_path: Path, value: str) -> None:
    folder = copy(two_ranks, tmp_path / "a")
    (folder / "scalars.json").write_text(value)
    with pytest.raises(CheckpointError, match=r"scalars\.json"):
        read_shards(folder)


def test_a_damaged_checkpoint_of_two_ranks_is_passed_over(two_ranks: Path, tmp_path: Path) -> None:
    run = shutil.copytree(two_ranks, tmp_path / "run")
    path = checkpoint_folder(run, 4) / "shard-00002-model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    checkpoints = ShardedCheckpoints(run, Mesh.single())
    found = checkpoints.latest()
    assert found is not None and found[1]["step"] == 2
    assert "sha256 differs" in checkpoints.passed_over[0]


def refuse_what_is_not_ours(run: Path) -> None:
    """Another width, found by both ranks; each would otherwise read past its part."""
    with (
        meeting(1, 2) as mesh,
        pytest.raises(CheckpointError, match=r"has shape .*, expected|belongs to another model"),
    ):
        from ranks import TINY

        config = type(TINY).from_fields(TINY.to_fields() | {"hidden_size": 32}, where="test")
        tiny_trainer(run, mesh, steps=12, config=config, balance=Balance()).resume()


def test_a_state_of_another_shape_is_refused_on_every_rank(two_ranks: Path) -> None:
    on_ranks(2, refuse_what_is_not_ours, two_ranks)
