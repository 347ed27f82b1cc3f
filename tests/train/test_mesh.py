import os
import socket
from datetime import timedelta

import pytest
import torch
from ranks import meeting, on_ranks

from coterie.errors import RecipeError, ResourceError
from coterie.train.mesh import Mesh, _own_gpu, loopback, mesh_shape, n_ranks_of


def test_alone_there_is_nothing_to_sum_and_nobody_to_wait_for() -> None:
    mesh = Mesh.connect(0, 1, env={})
    x = torch.ones(2)
    assert mesh == Mesh.single() and mesh.is_first and mesh.sum(x) is x
    assert mesh.sum_numbers(1.0, 2.0) == [1.0, 2.0] and mesh.any(True) and not mesh.any(False)
    assert mesh.first_says("é") == "é" and torch.equal(mesh.rows(x), x)
    with mesh.first_rank_first():
        mesh.leave()


@pytest.mark.parametrize(
    ("data", "expert", "n_ranks", "shape"), [(0, 1, 1, (1, 1)), (0, 2, 8, (4, 2)), (2, 4, 8, (2, 4)), (8, 1, 8, (8, 1))]
)
def test_data_is_what_expert_leaves(data: int, expert: int, n_ranks: int, shape: tuple[int, int]) -> None:
    assert mesh_shape(data, expert, n_ranks) == shape


@pytest.mark.parametrize(
    ("data", "expert", "n_ranks", "sentence"),
    [
        (2, 2, 2, r"data = 2, expert = 2 does not fit 2 ranks; .* start with --ranks 4"),
        (0, 2, 1, r"expert = 2 does not fit 1 rank;"),
        (0, 2, 3, r"expert = 2 does not fit 3 ranks"),
    ],
)
def test_a_layout_of_another_number_of_ranks_is_refused(data: int, expert: int, n_ranks: int, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        mesh_shape(data, expert, n_ranks)


def test_the_number_of_ranks_comes_from_whoever_started_them() -> None:
    assert [n_ranks_of(env) for env in ({}, {"WORLD_SIZE": "4"}, {"COTERIE_RANKS": "2"})] == [1, 4, 2]
    with pytest.raises(RecipeError, match="WORLD_SIZE = four, expected a number of ranks"):
        n_ranks_of({"WORLD_SIZE": "four"})


def test_a_world_size_without_the_rest_is_one_sentence() -> None:
    with pytest.raises(RecipeError, match="WORLD_SIZE = 2 and not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with"):
        Mesh.connect(0, 1, env={"WORLD_SIZE": "2", "RANK": "0"})


def test_every_rank_has_a_gpu_of_its_own_or_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of `--ranks` counts for itself, whatever LOCAL_RANK an outer torchrun left behind."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torchrun = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    torchrun |= {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert _own_gpu(torchrun) == torch.device("cuda", 1)
    assert _own_gpu({"COTERIE_RANK": "0", "COTERIE_RANKS": "2", "LOCAL_RANK": "1"}) == torch.device("cuda", 0)
    with pytest.raises(ResourceError, match="3 ranks on one machine need as many GPUs, and here are 2; take fewer"):
        Mesh.connect(0, 1, "cuda", env={"COTERIE_RANK": "0", "COTERIE_RANKS": "3"})
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ResourceError, match="built without NCCL"):
        Mesh.connect(0, 1, "cuda", env=torchrun)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    Mesh(0, 2, 2, 1, torch.device("cpu")).require_rows([4, 2])
    with pytest.raises(RecipeError, match="a micro-batch has 3 sequences, which 2 ranks cannot share evenly"):
        Mesh(0, 2, 2, 1, torch.device("cpu")).require_rows([4, 3])


def test_the_loopback_is_an_interface_of_this_machine() -> None:
    assert loopback() in [name for _, name in socket.if_nameindex()]


def talk() -> None:
    with meeting(0, 2) as mesh:
        assert (mesh.data, mesh.expert, mesh.n_ranks) == (1, 2, 2)
        mine = torch.tensor([1.0, float(mesh.rank)])
        assert mesh.sum(mine).tolist() == [2.0, 1.0] and mine.tolist() == [1.0, mesh.rank]
        assert mesh.sum_numbers(mesh.rank, 0.5) == [1.0, 1.0]
        assert mesh.any(mesh.rank == 1) and not mesh.any(False)
        assert mesh.first_says("/où/" if mesh.is_first else "nonsense") == "/où/"
        assert mesh.rows(torch.arange(4)).tolist() == [2 * mesh.rank, 2 * mesh.rank + 1]
        order = torch.zeros(1)
        with mesh.first_rank_first():
            order += 1
        mesh.wait()
        assert {os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {loopback()}
        whole = torch.distributed.group.WORLD
        assert whole and whole._get_backend(mesh.device).options._timeout >= timedelta(days=1)  # tokenising takes hours


def test_two_ranks_talk() -> None:
    on_ranks(2, talk)
