"""Which tile is the best of those that run, with products that need no card."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.bench import tune
from coterie.errors import ResourceError
from coterie.kernels import tiles
from coterie.kernels.tiles import Kind, Shape, Tile


class Work:
    """A product for each tile, by what `runs` says of it."""

    shape, dtype, device = Shape(64, 64, 2), torch.bfloat16, torch.device("cpu")

    def __init__(self, runs: Callable[[Tile], Tensor]):
        self.runs = runs

    def run_of(self, kind: Kind, rows: float) -> tuple[Callable[[Tile], Tensor], float, float]:
        return self.runs, 1e9, 1e12


@pytest.fixture(autouse=True)
def _same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(run: Callable[[], Any]) -> float:
        run()
        return 0.5

    monkeypatch.setattr(tune, "_seconds", seconds)


def test_a_default_that_does_not_run_is_left_out_like_any_other() -> None:
    default = tiles.default("gate_up", Work.shape, Work.dtype, 64, tiles.card_of(Work.device))
    first, wrong, *_ = (tile for tile in tiles.candidates("gate_up", Work.dtype, 64) if tile != default)

    def runs(tile: Tile) -> Tensor:
        if tile == default:
            raise RuntimeError("out of resource: shared memory")
        return torch.full((4, 4), 2.0 if tile == wrong else 1.0)

    found = tune.best(Work(runs), "gate_up", 64)  # type: ignore[arg-type]
    assert found.tile == first and found.milliseconds == 500 and found.bytes_per_second == 2e9
    assert len(found.refused) == 2 and "shared memory" in found.refused[0] and "differs by" in found.refused[1]


def test_no_tile_that_runs_is_a_sentence() -> None:
    def runs(tile: Tile) -> Tensor:
        raise RuntimeError("no kernel image")

    with pytest.raises(ResourceError, match=r"none of the tiles for down with 16 rows .*: .*no kernel image"):
        tune.best(Work(runs), "down", 16)  # type: ignore[arg-type]
