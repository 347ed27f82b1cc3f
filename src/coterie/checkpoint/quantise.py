"""A checkpoint's weights in packed formats, one matrix at a time: at load, and for the packed file.

What each matrix becomes is planned from the configuration alone. A matrix that a format cannot hold stays as the file
has it, with the reason. Shapes: N outputs, K inputs of a matrix, E experts, F expert width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from coterie.checkpoint.convert_plan import Report, Work
from coterie.checkpoint.names import part_of
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch
from coterie.checkpoint.opened import Checkpoint, require_plain_router
from coterie.checkpoint.packed_plain import plan_any
from coterie.checkpoint.pieces import Files
from coterie.checkpoint.tied import require_tied_equal
from coterie.errors import CheckpointError
from coterie.quant.formats import Format
from coterie.quant.importance import ENOUGH_TOKENS, Importance
from coterie.quant.recipe import Recipe, why_not
from coterie.quant.tensor import PackedTensor, alternate_halves

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Planned", "plain_parts", "plan_parts", "quantise_checkpoint", "quantised_parts", "remarks"]

Progress = Callable[[int, int], None]
_LARGEST = 65504  # of F16


@dataclass(frozen=True)
class Planned:
    """A matrix or vector to come: packed in `format`, or plain of the file type `dtype`, by plan or for a `reason`."""

    name: str  # canonical; an expert's is `layers.3.moe.experts.5.down`
    part: str  # attention, experts, router, norms, embedding or head
    shape: tuple[int, ...]  # of gate_up: (2F, K)
    format: Format | None
    dtype: str
    works: tuple[Work, ...]  # where its rows come from
    reason: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        if self.format is not None:
            return self.format.matrix_bytes(self.shape[0], self.shape[1])
        return sum(work.nbytes for work in self.works)


def plan_parts(checkpoint: Checkpoint, recipe: Recipe) -> list[Planned]:
    """What the recipe makes of a checkpoint, in canonical order, expert by expert; its router is Mixtral's own."""
    require_plain_router(checkpoint, "packed weights")
    groups: dict[str, list[Work]] = {}
    for work in plan_any(checkpoint, "huggingface", lambda _, entry: _float_type(entry.dtype)):
        groups.setdefault(_name_of(checkpoint, work), []).append(work)
    return [_planned(checkpoint, recipe, name, works) for name, works in groups.items()]


def quantise_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, importance: Importance | None = None, progress: Progress | None = None
) -> "dict[str, PackedTensor | Tensor]":
    """What `quant.layers.install` takes, by name. The peak is the result and a few copies of the largest matrix.

    NaN and Inf are `CheckpointError`s that name the tensor; `progress(done, total)` counts bytes read.
    """
    with Files(checkpoint.files) as files:
        require_tied_equal(checkpoint, files)
    return dict(quantised_parts(checkpoint, plan_parts(checkpoint, recipe), recipe, importance, progress))


def quantised_parts(
    checkpoint: Checkpoint,
    planned: list[Planned],
    recipe: Recipe,
    importance: Importance | None = None,
    progress: Progress | None = None,
    done: int = 0,
    device: "torch.device | None" = None,
) -> "Iterator[tuple[str, PackedTensor | Tensor]]":
    """The parts that are planned, one after the other; `done` bytes of the checkpoint count as read before.

    They are quantised on `device`, where one is given, and stay there.
    """
    report = Report(progress, checkpoint.nbytes)
    report.add(done)
    with Files(checkpoint.files) as files:
        for p in planned:
            weights = _read(p, files, report)
            weights = weights if device is None else weights.to(device)
            if p.format is None:
                yield p.name, weights
            else:
                matrix = importance.of(p.name) if importance else None
                yield p.name, _packed(p, recipe, weights, matrix)


def plain_parts(
    checkpoint: Checkpoint, planned: list[Planned], progress: Progress | None = None
) -> "Iterator[tuple[str, Tensor]]":
    """The parts as the file has them, one after the other; gate rows come first, then up rows."""
    report = Report(progress, checkpoint.nbytes)
    with Files(checkpoint.files) as files:
        for p in planned:
            yield p.name, _read(p, files, report)


def remarks(planned: list[Planned], importance: Importance | None = None) -> Iterator[str]:
    """A sentence on each thing that does not go as the recipe says: matrices left plain, experts left unweighted."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for p in planned:
        if p.reason:
            reasons.setdefault((FILE_DTYPES[p.dtype], p.reason), []).append(p.name)
    for (dtype, reason), names in reasons.items():
        yield f"{len(names)} matrices stay {dtype} because {reason}: {names[0]} to {names[-1]}"
    if importance is not None and (starved := importance.starved()):
        few = ", ".join(f"{name} ({importance.counts[name + '.down']})" for name in starved)
        yield f"{len(starved)} experts saw fewer than {ENOUGH_TOKENS} tokens and are quantised unweighted: {few}"


def _float_type(code: str) -> str:
    return code if code in FILE_DTYPES else "F32"


def _name_of(checkpoint: Checkpoint, work: Work) -> str:
    """The part that a stretch of a canonical tensor belongs to: of the experts' tensors, one expert."""
    stem, _, last = work.place.name.rpartition(".")
    if not stem.endswith(".experts"):
        return work.place.name
    c = checkpoint.config
    e = work.place.first // (c.hidden_size * c.intermediate_size * (2 if last == "gate_up" else 1))
    return f"{stem}.{e}.{last}"


def _planned(checkpoint: Checkpoint, recipe: Recipe, name: str, works: list[Work]) -> Planned:
    part = part_of(name)
    part = "experts" if part == "feedforward" else part
    first = works[0].place.shape
    shape = (sum(work.place.shape[0] for work in works), *first[1:])
    format, c = recipe.format_of(part), checkpoint.config
    if format is None:
        return Planned(name, part, shape, None, "F32", tuple(_as_type(works, "F32")))
    reason = why_not(name, shape, c.hidden_size, c.intermediate_size)
    return Planned(name, part, shape, None if reason else format, works[0].dtype, tuple(works), reason)


def _as_type(works: list[Work], code: str) -> Iterator[Work]:
    for w in works:
        yield replace(w, dtype=code)


def _read(p: Planned, files: Files, report: Report) -> "Tensor":
    pieces = [piece for work in p.works for piece in work.contents(files, report)]
    raw = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return as_torch(raw, p.dtype).view(p.shape)


def _packed(p: Planned, recipe: Recipe, w_NK: "Tensor", importance_K: "Tensor | None") -> PackedTensor:
    assert p.format is not None
    if (largest := float(w_NK.abs().max())) > _LARGEST:
        raise CheckpointError(f"{p.name} contains {largest:.4g}, too much for the F16 scales of {p.format.label}")
    return recipe.quantise(alternate_halves(w_NK) if p.name.endswith(".gate_up") else w_NK, p.format, importance_K)
