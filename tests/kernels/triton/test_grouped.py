"""Grouped products in Triton against the sparse block in torch, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.kernels import reference
from coterie.kernels.tiles import Tile
from coterie.kernels.triton_grouped import down_product, gate_up_product, many
from coterie.kernels.triton_sort import combine, sort_pairs

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TILES = [
    Tile(16, 64, 32, warps=4, stages=2, group=2),
    Tile(16, 64, 64, warps=4, stages=3, swap=True, per_sm=0),
    Tile(32, 64, 64, warps=4, stages=3, tma=True, parts=2),
    Tile(16, 128, 32, warps=4, stages=3, tma=True, swap=True, parts=3, per_sm=2),
]


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes is NaN."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        found = empty(*shape, **options)
        return found.fill_(torch.nan) if found.is_floating_point() else found.fill_(1 << 30)

    monkeypatch.setattr(torch, "empty", poisoned)


class Block:
    """Random rows, experts and weights; ids of `make`."""

    def __init__(self, ids_TK: Tensor, D: int, F: int, E: int, dtype: torch.dtype, device: torch.device) -> None:
        T, K = ids_TK.shape
        self.ids_TK = ids_TK.to(device)
        self.weights_TK = torch.rand(T, K).to(device)
        self.x_TD = torch.randn(T, D).to(device, dtype)
        self.gate_up = (torch.randn(E, 2 * F, D) / D**0.5).to(device, dtype)
        self.down = (torch.randn(E, D, F) / F**0.5).to(device, dtype)

    def expected(self) -> Tensor:
        x, weights, gate_up, down = (t.double() for t in (self.x_TD, self.weights_TK, self.gate_up, self.down))
        return reference.sparse_ffn(x, self.ids_TK, weights, gate_up, down)

    def by(self, first: Tile, second: Tile) -> Tensor:
        (_, K), sorted_ = self.ids_TK.shape, sort_pairs(self.ids_TK, len(self.down))
        h_NF = gate_up_product(self.x_TD, sorted_, K, self.gate_up, first)
        return combine(down_product(h_NF, sorted_, self.down, second), sorted_, self.weights_TK, self.x_TD.dtype)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def some_ids(T: int, K: int, E: int, seed: int, unused: float = 0.1) -> Tensor:
    """Different experts of each row, some slots unused."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(T, E, generator=generator).topk(K).indices.int()
    return torch.where(torch.rand(T, K, generator=generator) < unused, -1, ids)


@pytest.mark.parametrize(
    ("T", "K", "E"),
    [(1, 1, 1), (4, 2, 3), (64, 2, 8), (700, 2, 8), (1500, 2, 8), (100, 8, 64), (33000, 2, 8), (0, 2, 4)],
)
def test_pairs_are_sorted_by_expert_and_those_of_no_expert_are_last(
    T: int, K: int, E: int, device: torch.device
) -> None:
    ids = some_ids(T, K, E, T).to(device)
    pair, place, offsets = sort_pairs(ids, E)
    assert pair.dtype == place.dtype == offsets.dtype == torch.int32
    flat = torch.where(ids < 0, E, ids).flatten()
    assert pair.long().equal(flat.sort(stable=True).indices)
    assert place[pair.long()].equal(torch.arange(T * K, device=device, dtype=torch.int32))
    assert offsets.tolist() == [int((flat < e).sum()) for e in range(E + 1)]


@pytest.mark.parametrize(
    ("T", "K", "E", "D", "F", "dtype"),
    [
        (5, 2, 3, 64, 96, torch.float32),
        (40, 2, 2, 40, 56, torch.float32),
        (7, 3, 6, 72, 88, torch.float32),
        (30, 2, 3, 64, 40, torch.bfloat16),
        (30, 2, 3, 40, 64, torch.float16),
    ],
)
@pytest.mark.parametrize("tile", TILES, ids=range(len(TILES)))
def test_a_block_of_many_rows(
    tile: Tile, T: int, K: int, E: int, D: int, F: int, dtype: torch.dtype, device: torch.device, is_card: bool
) -> None:
    torch.manual_seed(T)
    scale = 8 if is_card else 1
    block = Block(some_ids(T * scale, K, E, T), D * scale, F * scale, E, dtype, device)
    expected = block.expected()
    assert error(block.by(replace(tile, parts=1), tile), expected) < TOLERANCE[dtype]
    got = many(block.x_TD, block.ids_TK, block.weights_TK, block.gate_up, block.down)
    assert got.dtype == dtype and error(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["one expert takes all", "some experts have none", "none are used", "a row is unused"])
def test_experts_with_all_or_no_rows(kind: str, device: torch.device, is_card: bool) -> None:
    T = 300 if is_card else 20
    ids = some_ids(T, 2, 6, 5)
    if kind == "one expert takes all":
        ids = torch.tensor([[4, -1]]).expand(T, 2).int()
    elif kind == "some experts have none":
        ids = torch.where((ids == 0) | (ids == 3), 5, ids)
    elif kind == "none are used":
        ids = torch.full_like(ids, -1)
    else:
        ids[3] = -1
    block = Block(ids, 48, 80, 6, torch.float32, device)
    got = many(block.x_TD, block.ids_TK, block.weights_TK, block.gate_up, block.down)
    assert error(got, block.expected()) < 1e-6 and bool((got[(block.ids_TK < 0).all(1)] == 0).all())


def test_nan_in_a_row_stays_in_it(device: torch.device) -> None:
    block = Block(some_ids(50, 2, 4, 1), 64, 64, 4, torch.float32, device)
    expected = block.expected()
    block.x_TD[7] = torch.nan
    got = many(block.x_TD, block.ids_TK, block.weights_TK, block.gate_up, block.down)
    assert bool(got[7].isnan().all())
    keep = torch.arange(50, device=device) != 7
    assert error(got[keep], expected[keep]) < 1e-6


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # in rows that nobody uses
def test_torchs_grouped_product_does_the_same(device: torch.device) -> None:
    block = Block(some_ids(60, 2, 4, 3), 64, 128, 4, torch.bfloat16, device)
    by_torch = Tile(by="torch")
    assert error(block.by(by_torch, by_torch), block.expected()) < 1e-2


def test_rows_do_not_depend_on_the_others_of_a_call(device: torch.device) -> None:
    tile = replace(TILES[1], parts=2)
    block = Block(some_ids(40, 2, 4, 3, 0), 64, 96, 4, torch.float32, device)
    whole = block.by(replace(tile, parts=1), tile)
    block.x_TD, block.ids_TK, block.weights_TK = block.x_TD[5:20], block.ids_TK[5:20], block.weights_TK[5:20]
    assert torch.equal(block.by(replace(tile, parts=1), tile), whole[5:20])
