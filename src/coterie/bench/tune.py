"""Tiles of grouped products tried on a card: which is the fastest for a shape and a number of rows an expert.

Weights and rows are random, experts are chosen as evenly as chance does it, the card's cache is emptied before each
run, and a candidate whose numbers are not those of the first is left out. Times are medians.
Shapes: D model width, F expert width, E experts, K experts a token, T tokens, N pairs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import ResourceError
from coterie.kernels import gpu_choice, tiles
from coterie.kernels.tiles import Kind, Shape, Tile

__all__ = ["Found", "Work", "all_best", "best", "entries", "require_card"]

_MILLISECONDS = 60  # of runs for each candidate, after a third of that for warming up
_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Found:
    kind: Kind
    rows: float  # an expert
    tile: Tile
    milliseconds: float
    bytes_per_second: float  # of weights of experts in use, rows in and out
    operations_per_second: float
    tried: tuple[tuple[Tile, float], ...]  # milliseconds of each
    refused: tuple[str, ...]  # candidates that did not run or were wrong, and why


class Work:
    """The sparse block of one layer on a card."""

    def __init__(self, shape: Shape, n_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        D, F, E = shape
        self.shape, self.n_slots, self.dtype, self.device = shape, n_slots, dtype, device
        self.gate_up = _random((E, 2 * F, D), dtype, device)
        self.down = _random((E, D, F), dtype, device)

    def run_of(self, kind: Kind, rows: float) -> tuple[Callable[[Tile], Tensor], float, float]:
        """A product of so many rows an expert by a tile, its bytes and its operations."""
        from coterie.kernels.triton_grouped import down_product, gate_up_product
        from coterie.kernels.triton_sort import sort_pairs

        (D, F, E), K = self.shape, self.n_slots
        T = max(1, round(rows * E / K))
        ids_TK = torch.rand(T, E, device=self.device).topk(K).indices.int()
        sorted_ = sort_pairs(ids_TK, E)
        n_used = int((sorted_.offsets.diff() > 0).sum())
        if kind == "gate_up":
            x_TD, weight, sides = _random((T, D), self.dtype, self.device), self.gate_up, (T * D, T * K * F)

            def run(tile: Tile) -> Tensor:
                return gate_up_product(x_TD, sorted_, K, weight, tile)

        else:
            h_NF, weight, sides = _random((T * K, F), self.dtype, self.device), self.down, (T * K * F, T * K * D)

            def run(tile: Tile) -> Tensor:
                return down_product(h_NF, sorted_, weight, tile)

        per_expert = weight[0].numel()
        return run, (n_used * per_expert + sum(sides)) * self.dtype.itemsize, 2.0 * T * K * per_expert


def require_card() -> torch.device:
    """The card; `ResourceError` where there is none that Triton can use."""
    problem = gpu_choice.problem() if torch.cuda.is_available() else "torch finds no CUDA device"
    if problem is not None:
        raise ResourceError(f"tiles are measured on a CUDA card that Triton can use, and here is none ({problem})")
    return torch.device("cuda", torch.cuda.current_device())


def best(work: Work, kind: Kind, rows: float) -> Found:
    """The fastest of the default and the candidates; `ResourceError` where none of them runs."""
    card = tiles.card_of(work.device)
    default = tiles.default(kind, work.shape, work.dtype, rows, card)
    todo = [default, *(t for t in tiles.candidates(kind, work.dtype, rows) if t != default)]
    run, n_bytes, n_operations = work.run_of(kind, rows)
    expected: Tensor | None = None
    times, refused = dict[Tile, float](), list[str]()
    for tile in todo:
        try:
            got = run(tile).sum(0, dtype=torch.float32)
            expected = got if expected is None else expected
            error = float((got - expected).norm() / expected.norm())
            if error <= _TOLERANCE:
                times[tile] = _seconds(functools.partial(run, tile))
            else:
                refused.append(f"{tile}: differs by {error:.1e}")
        except Exception as e:  # Triton, ptxas and the driver each have types of their own for a tile too large
            refused.append(f"{tile}: {type(e).__name__}: {str(e).strip()[:120]}")
    if not times:
        raise ResourceError(f"none of the tiles for {kind} with {rows:g} rows an expert runs here: {refused[0]}")
    fastest = min(times, key=times.__getitem__)
    second = times[fastest]
    tried = tuple((tile, s * 1e3) for tile, s in times.items())
    return Found(kind, rows, fastest, second * 1e3, n_bytes / second, n_operations / second, tried, tuple(refused))


def all_best(work: Work, rows: Sequence[float], report: Callable[[int, int], None]) -> Iterator[Found]:
    """For both products and each number of rows."""
    kinds: tuple[Kind, Kind] = ("gate_up", "down")
    todo = [(kind, r) for r in rows for kind in kinds]
    for i, (kind, r) in enumerate(todo):
        report(i, len(todo))
        yield best(work, kind, r)
    report(len(todo), len(todo))


def entries(work: Work, found: Sequence[Found]) -> list[dict[str, Any]]:
    """What `tiles.write` takes."""
    name = str(work.dtype).removeprefix("torch.")
    return [
        {
            "kind": f.kind,
            "dtype": name,
            "shape": list(work.shape),
            "rows": f.rows,
            "milliseconds": round(f.milliseconds, 4),
            "tile": f.tile,
        }
        for f in found
    ]


def _seconds(run: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=_MILLISECONDS // 3, rep=_MILLISECONDS, return_mode="median")) / 1e3


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.05)
