"""The tiles of grouped products: what a program computes at a time, by card, shapes and rows an expert.

`coterie bench tune` measures candidates on a card and writes the best to the user's cache; the package ships what it
found on some. Where neither knows a shape, `default` is taken: it follows from how much of the work is reading weights.
Shapes: D model width, F expert width, E experts; rows: pairs (token, slot) an expert, on average.
"""

import functools
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from coterie.errors import ConfigError

__all__ = [
    "MOST_PACKED",
    "Card",
    "Kind",
    "Shape",
    "Tile",
    "candidates",
    "card_of",
    "default",
    "fitted",
    "packed",
    "path_of",
    "tile",
    "write",
]

Kind = Literal["gate_up", "down"]
MOST_PACKED = 256  # rows an expert up to which packed weights are made plain within the products
_FAR = 2.0  # a measured tile serves up to this factor more or fewer rows, in each direction


class Shape(NamedTuple):
    D: int
    F: int
    E: int


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` x `columns` outputs (gate and up rows both count), `depth` of the inner product at a time."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    warps: int = 8
    stages: int = 4
    group: int = 16  # tiles of rows that share a tile of weights while it is in the cache
    parts: int = 1  # that the inner product is cut into, where outputs are too few for the card; down only
    per_sm: int = 1  # programs a multiprocessor, each taking tile after tile; 0: a program for each tile
    swap: bool = False  # weights x rows: few rows then fill the width of a matrix instruction, not its height of 64
    tma: bool = False  # tiles come by descriptors, from Hopper on
    by: Literal["triton", "torch"] = "triton"  # torch: its grouped product, of rows copied into order

    def nbytes(self, size: int) -> int:
        """Shared memory of a program whose numbers take `size` bytes."""
        return self.stages * (self.rows + self.columns) * self.depth * size


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    processors: int
    shared: int  # bytes a program may have
    has_tma: bool


@functools.cache
def card_of(device: torch.device) -> Card:
    if device.type != "cuda":
        return Card("interpreter", 4, 232448, False)
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 101376)
    return Card(found.name, found.multi_processor_count, shared, found.major >= 9)


def tile(kind: Kind, shape: Shape, dtype: torch.dtype, rows: float, device: torch.device) -> Tile:
    """The measured tile of the nearest number of rows, else the default."""
    card, name, best = card_of(device), str(dtype).removeprefix("torch."), None
    for entry in _measured(card.name):
        if entry["kind"] == kind and entry["dtype"] == name and tuple(entry["shape"]) == tuple(shape):
            distance = abs(math.log2(rows / entry["rows"]))
            if distance <= math.log2(_FAR) and (best is None or distance < best[0]):
                best = distance, entry["tile"]
    return default(kind, shape, dtype, rows, card) if best is None else best[1]


def default(kind: Kind, shape: Shape, dtype: torch.dtype, rows: float, card: Card) -> Tile:
    """Few rows read weights: two programs a multiprocessor keep about 100 kB of them on the way. Many rows multiply."""
    if dtype == torch.float32:  # no matrix instruction is exact
        found = Tile(16 if rows <= 16 else 64, 64, 32, warps=4, stages=3, per_sm=2)
    elif rows <= 8:
        found = Tile(16, 128, 128, warps=4, stages=3, per_sm=2, swap=True)
    elif rows <= 16:
        found = Tile(32, 128, 64, warps=4, stages=5, per_sm=2, swap=True)
    elif rows <= 32:
        found = Tile(64, 128, 64, warps=4, stages=4, per_sm=2, swap=True)
    elif rows <= 96:
        found = Tile(128, 128, 64, warps=4, stages=3, per_sm=2)
    elif dtype == torch.bfloat16 and rows >= 256:  # torch's grouped product is near the card's peak
        found = Tile(by="torch")
    else:
        found = Tile(tma=True)
    found = fitted(found, dtype, card)
    return _with_parts(found, kind, shape, card) if rows <= 96 else found


def packed(kind: Kind, shape: Shape, dtype: torch.dtype, rows: float, card: Card) -> Tile:
    """For packed weights: all rows of an expert in a tile if they can be, since each tile makes its weights plain."""
    if dtype == torch.float32:
        found = Tile(16, 64, 32, warps=4, stages=2, per_sm=2)
    elif rows <= 32 or card.shared < 160_000:
        m = 16 if rows <= 8 else 32 if rows <= 16 else 64
        found = Tile(m, 128, 32, warps=8, stages=2 if m == 64 else 3, per_sm=2, swap=True)
    else:
        found = Tile(128, 128, 32, warps=8, stages=2, swap=True)
    return _with_parts(found, kind, shape, card)


def _with_parts(tile: Tile, kind: Kind, shape: Shape, card: Card) -> Tile:
    """In as many parts as the card has room for at a time."""
    n_tiles = max(1, shape.E * (shape.D // tile.columns))
    parts = max(1, min(8, tile.per_sm * card.processors // n_tiles, shape.F // 512))
    return replace(tile, parts=parts) if kind == "down" else tile


def fitted(tile: Tile, dtype: torch.dtype, card: Card) -> Tile:
    """The tile with fewer stages, then narrower, until the card can hold it."""
    if not card.has_tma:
        tile = replace(tile, tma=False)
    while tile.nbytes(dtype.itemsize) > card.shared:
        tile = replace(tile, stages=tile.stages - 1) if tile.stages > 2 else replace(tile, columns=tile.columns // 2)
    return tile


def candidates(kind: Kind, dtype: torch.dtype, rows: float) -> list[Tile]:
    """What `coterie bench tune` tries, none of which spills registers."""
    if dtype == torch.float32:
        return [Tile(m, n, 32, 4, 3, per_sm=2) for m in (16, 32, 64) for n in (64, 128)]
    if rows <= 48:
        m = min(64, max(16, 1 << math.ceil(math.log2(max(rows, 1) * 1.5))))
        few = Tile(m, 128, 64, warps=4, stages=4, per_sm=2, swap=True)
        return [
            few,
            replace(few, stages=5 if m <= 32 else 4, tma=True),
            replace(few, depth=128, stages=3 if m == 16 else 2),
            replace(few, columns=64, stages=7 if m <= 32 else 6),
            replace(few, columns=64, stages=7 if m <= 32 else 6, tma=True),
            replace(few, columns=64, depth=128, stages=3, tma=True),
            replace(few, columns=256, stages=5, per_sm=1, warps=8),
            replace(few, stages=4, per_sm=0),
            *([replace(few, parts=2)] if kind == "down" else []),
        ]
    big, middle = Tile(), Tile(128, 128, 64, warps=4, stages=3, per_sm=2)
    return [
        big,
        replace(big, tma=True),
        replace(big, tma=True, group=8),
        replace(big, tma=True, per_sm=0),
        replace(big, tma=True, stages=3),
        middle,
        replace(middle, tma=True),
        replace(middle, rows=64, columns=256, stages=2, tma=True),
        *([Tile(by="torch")] if dtype == torch.bfloat16 else []),
    ]


def path_of(card: str, *, is_shipped: bool = False) -> Path:
    """Where the tiles of a card are: in the package, or in the user's cache."""
    folder = Path(__file__).parent if is_shipped else _cache()
    return folder / "tiles" / f"{card.replace(' ', '_').replace('/', '_')}.json"


def write(card: str, entries: list[dict[str, Any]]) -> Path:
    """Adds measured tiles to the user's file, in place of those of the same kind, type, shape and rows."""
    path, replaced = path_of(card), {_key(e) for e in entries}
    kept = [e for e in (_entries(path) if path.exists() else []) if _key(e) not in replaced]
    merged = sorted(kept + entries, key=_key)
    lines = [json.dumps(e | {"tile": _said(e["tile"])}) for e in merged]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"card": {json.dumps(card)}, "tiles": [\n  ' + ",\n  ".join(lines) + "\n]}\n")
    _measured.cache_clear()
    return path


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["kind"], entry["dtype"], tuple(entry["shape"]), entry["rows"]


def _said(tile: Tile) -> dict[str, Any]:
    """What differs from a plain tile."""
    plain = asdict(Tile())
    return {name: value for name, value in asdict(tile).items() if value != plain[name]}


@functools.cache
def _measured(card: str) -> list[dict[str, Any]]:
    """The user's first: of equally near ones the first is taken."""
    paths = (path_of(card), path_of(card, is_shipped=True))
    return [entry for path in paths if path.exists() for entry in _entries(path)]


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text())["tiles"]
        return [
            e | {"tile": Tile(**e["tile"]), "shape": list(Shape(*e["shape"])), "rows": float(e["rows"])} for e in found
        ]
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError(
            f"{path} holds no tiles of a card ({e}); delete it, `coterie bench tune` writes it anew"
        ) from e


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coterie"
