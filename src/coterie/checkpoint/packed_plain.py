"""A packed folder as plain numbers, a few rows at a time: what a conversion reads, or a model that is to be plain.

What is written is what the kernels multiply by: every weight is made exact in float32, then rounded to the type asked
for. Panels lie one after the other, so a piece is whole panels; of an expert's gate_up every second one is gate rows.
Example, F=96: the panels of gate_up are gate rows 0-15, up rows 0-15, gate rows 16-31, ...; the up rows alone are those
of the panels 1, 3, ..., 11. Shapes: N outputs, K inputs of a matrix, D model width, F expert width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.checkpoint.convert_plan import Report, Work, plan
from coterie.checkpoint.names import Naming, Place, places
from coterie.checkpoint.numbers import as_torch, convert_into
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import PackedCheckpoint, PackedPart
from coterie.checkpoint.pieces import PIECE_BYTES, Files, Piece, n_bytes
from coterie.checkpoint.safetensors import Entry
from coterie.quant.formats import PANEL

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fill_plain", "plan_any"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class _PackedWork(Work):
    """Rows of a packed matrix. `half` of gate_up: 0 its gate rows, 1 its up rows, None where all rows are meant.

    `source` is what it stands for, F32 [N, K]; its bytes are this work's share of those on the disk.
    """

    part: PackedPart
    half: int | None

    def read(self, files: Files) -> Iterator[tuple[Bytes, str, str, int]]:
        import torch

        from coterie.quant.tensor import PackedTensor

        format, (N, K) = self.part.format, self.place.shape
        assert format is not None
        together = 1 if self.half is None else 2
        panel_bytes = format.panel_bytes(K)
        unit = math.lcm(PANEL, N // self.new_heads) if self.new_heads else PANEL
        step = max(unit, PIECE_BYTES // (4 * K) // unit * unit)
        for row in range(0, N, step):
            n = min(step, N - row)
            n_panels = -(-n // PANEL) * together
            at = self.part.offset - self.part.entry.offset + row // PANEL * together * panel_bytes
            piece = Piece(self.part.entry, self.place, at, n_panels * panel_bytes)
            raw = np.empty(piece.nbytes, np.uint8)
            files.read(piece, raw)
            kept = raw if self.half is None else np.ascontiguousarray(raw.reshape(-1, panel_bytes)[self.half :: 2])
            w_nK = PackedTensor(format, (n, K), torch.from_numpy(kept.reshape(-1))).dequantise()
            label = f"{self.part.entry.file}: {self.part.name!r}"
            yield w_nK.view(-1).view(torch.uint8).numpy(), "F32", label, piece.nbytes // together


def plan_any(checkpoint: Checkpoint, naming: Naming, type_of: Callable[[Place, Entry], str]) -> list[Work]:
    """`convert_plan.plan`, of a packed checkpoint too: its packed matrices count as F32."""
    if not isinstance(checkpoint, PackedCheckpoint):
        return plan(checkpoint, naming, type_of)
    parts, c = {p.name: p for p in checkpoint.parts}, checkpoint.config
    work = []
    for name, new in places(c, naming):
        part, half = _part_of(parts, new, c.hidden_size * c.intermediate_size)
        if part.format is None:
            skipped = n_bytes(part.entry.dtype, (half or 0) * new.n_elements)
            nbytes = n_bytes(part.entry.dtype, new.n_elements)
            source = replace(part.entry, shape=new.shape, offset=part.offset + skipped, nbytes=nbytes)
            work.append(Work(name, type_of(new, source), source, replace(new, n_heads=0), new.n_heads))
        else:
            nbytes = part.nbytes // (1 if half is None else 2)
            source = Entry(part.name, "F32", new.shape, part.entry.file, part.offset, nbytes)
            place = replace(new, n_heads=0)
            work.append(_PackedWork(name, type_of(new, source), source, place, new.n_heads, part, half))
    return work


def fill_plain(
    checkpoint: PackedCheckpoint, tensors: "dict[str, Tensor]", progress: Callable[[int, int], None] | None = None
) -> None:
    """Fill every tensor of a plain model, given by canonical name; conversion to the tensor's type on the way."""
    report = Report(progress, checkpoint.nbytes)
    with Files(checkpoint.files) as files:
        for work in plan_any(checkpoint, "huggingface", lambda _, entry: entry.dtype):
            flat, at = tensors[work.place.name].view(-1), work.place.first
            for raw in work.contents(files, report):
                piece = as_torch(raw, work.dtype)
                convert_into(flat[at : at + len(piece)], piece, f"{checkpoint.path}: {work.place.name!r}")
                at += len(piece)


def _part_of(parts: dict[str, PackedPart], place: Place, expert_elements: int) -> tuple[PackedPart, int | None]:
    """The part that holds a stretch of a canonical tensor, and which half of it, where it is one half of gate_up."""
    stem, _, last = place.name.rpartition(".")
    if not stem.endswith(".experts"):
        return parts[place.name], None
    n = place.first // expert_elements
    if last == "down":
        return parts[f"{stem}.{n}.down"], None
    return parts[f"{stem}.{n // 2}.{last}"], n % 2 if place.n_elements == expert_elements else None
