"""A checkpoint of any format as canonical tensors, read one at a time: the peak is the tensor that is asked for.

What goes through a model layer by layer reads with this; `load.fill` is faster where the whole model is wanted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from coterie.checkpoint.convert_plan import Report, Work
from coterie.checkpoint.names import canonical_shapes
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, convert_into
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed_plain import plan_any
from coterie.checkpoint.pieces import Files

__all__ = ["TensorReader"]


class TensorReader:
    """`reader(name)` is a tensor in float32, which holds every type of the files exactly; NaN and Inf are refused.

    A context manager: the files stay open meanwhile. `progress(done, total)` counts bytes read.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None):
        self.checkpoint = checkpoint
        self.shapes = dict(canonical_shapes(checkpoint.config))
        self._works: dict[str, list[Work]] = {}
        for work in plan_any(checkpoint, "huggingface", lambda _, e: e.dtype if e.dtype in FILE_DTYPES else "F32"):
            self._works.setdefault(work.place.name, []).append(work)
        self._report = Report(progress, checkpoint.nbytes)
        self._files = Files(checkpoint.files)

    def __call__(self, name: str) -> Tensor:
        tensor = torch.empty(self.shapes[name])
        self.fill(name, tensor)
        return tensor

    def fill(self, name: str, target: Tensor) -> None:
        """Read into contiguous memory of any float type."""
        flat = target.view(-1)
        for work in self._works[name]:
            at = work.place.first
            for raw in work.contents(self._files, self._report):
                piece = as_torch(raw, work.dtype)
                convert_into(flat[at : at + len(piece)], piece, f"{self.checkpoint.path}: {name!r}")
                at += len(piece)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()
