"""Tiles: defaults that every card can hold, files of measured ones."""

import json
from pathlib import Path

import pytest
import torch

from coterie.errors import ConfigError
from coterie.kernels import tiles
from coterie.kernels.tiles import Card, Kind, Shape, Tile

MIXTRAL = Shape(4096, 14336, 8)
KINDS: tuple[Kind, Kind] = ("gate_up", "down")
CARDS = [
    Card("H200", 132, 232_448, True),
    Card("A100", 108, 166_912, False),
    Card("a small one", 46, 101_376, False),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles._measured.cache_clear()


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 9, 16, 24, 60, 300, 2048])
def test_a_default_fits_the_card_and_its_rows(rows: float, dtype: torch.dtype, card: Card) -> None:
    for kind in KINDS:
        for tile in (f(kind, MIXTRAL, dtype, rows, card) for f in (tiles.default, tiles.packed)):
            assert tile.nbytes(dtype.itemsize) <= card.shared
            assert tile.parts == 1 or kind == "down"
            assert not tile.tma or card.has_tma
        assert all(t.nbytes(dtype.itemsize) <= 232_448 for t in tiles.candidates(kind, dtype, rows))


def test_outputs_too_few_for_a_card_are_cut_along_the_inner_product() -> None:
    few = tiles.default("down", Shape(256, 4096, 2), torch.bfloat16, 4, CARDS[0])
    assert few.parts == 8 and tiles.default("down", MIXTRAL, torch.bfloat16, 4, CARDS[0]).parts == 1


def test_measured_tiles_are_kept_by_shape_and_rows() -> None:
    device = torch.device("cpu")
    card = tiles.card_of(device).name
    wide, narrow = Tile(128, 64, stages=3), Tile(16, 64, swap=True)

    def entry(rows: float, tile: Tile, kind: Kind = "down") -> dict[str, object]:
        return {"kind": kind, "dtype": "bfloat16", "shape": list(MIXTRAL), "rows": rows, "tile": tile}

    path = tiles.write(card, [entry(16, wide), entry(2048, wide)])
    assert tiles.write(card, [entry(16, narrow)]) == path == tiles.path_of(card)
    assert len(json.loads(path.read_text())["tiles"]) == 2

    def found(rows: float, shape: Shape = MIXTRAL, kind: Kind = "down") -> Tile:
        return tiles.tile(kind, shape, torch.bfloat16, rows, device)

    assert found(11) == found(30) == narrow and found(1500) == wide
    default = tiles.default("down", MIXTRAL, torch.bfloat16, 200, tiles.card_of(device))
    assert found(200) == default not in (wide, narrow)
    assert found(16, Shape(64, 64, 8)) != narrow != found(16, kind="gate_up")


def test_a_file_that_is_not_one_of_tiles_is_refused() -> None:
    path = tiles.path_of("interpreter")
    path.parent.mkdir(parents=True)
    path.write_text('{"tiles": [{"tile": {"colour": 3}}]}')
    with pytest.raises(ConfigError, match="holds no tiles of a card"):
        tiles.tile("down", MIXTRAL, torch.bfloat16, 2, torch.device("cpu"))


def test_shipped_files_can_be_read() -> None:
    folder = tiles.path_of("any", is_shipped=True).parent
    for path in folder.glob("*.json") if folder.exists() else []:
        assert tiles._entries(path)
