"""Models whose weights are packed: from a packed folder, mapped and ready at once, or quantised as they are read.

After either every part's bits are counted and held against the recipe, so nothing is silently left at 16 bits.
"""

import warnings
from collections.abc import Callable

import torch

from coterie.checkpoint.numbers import size_text
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import PackedCheckpoint
from coterie.checkpoint.quantise import plan_parts, quantise_checkpoint, remarks
from coterie.device import available_memory
from coterie.errors import RequestError, ResourceError
from coterie.model import Transformer
from coterie.quant.layers import install
from coterie.quant.recipe import Recipe
from coterie.quant.report import require_bits

__all__ = ["load_packed", "load_quantised"]

Progress = Callable[[int, int], None]


def load_packed(checkpoint: PackedCheckpoint) -> Transformer:
    """The model of a packed folder; its bytes are read when they are used. Activations are float32."""
    model = install(Transformer(checkpoint.config, torch.float32, "meta"), checkpoint.tensors())
    require_bits(model, checkpoint.recipe, checkpoint.about["plain"])
    assert isinstance(model, Transformer)
    return model


def load_quantised(
    checkpoint: Checkpoint, recipe: Recipe, dtype: str, device: torch.device, progress: Progress | None = None
) -> Transformer:
    """A checkpoint quantised as it is read; the peak is the result and a few copies of the largest matrix.

    Matrices that cannot be packed stay as the file has them, with a `UserWarning` that says why.
    """
    _require_cpu(dtype, device)
    planned = plan_parts(checkpoint, recipe)
    for sentence in remarks(planned):
        warnings.warn(f"{checkpoint.path}: {sentence}", stacklevel=2)
    need, there = sum(p.nbytes for p in planned), available_memory("cpu")
    if need > there:
        raise ResourceError(
            f"{checkpoint.path} needs {size_text(need)} of memory as {recipe.type} and the machine has "
            f"{size_text(there)} free; choose fewer bits, or convert it to a packed folder, which is mapped"
        )
    parts = quantise_checkpoint(checkpoint, recipe, progress=progress)
    model = install(Transformer(checkpoint.config, torch.float32, "meta"), parts)
    require_bits(model, recipe, [p.name for p in planned if p.reason])
    assert isinstance(model, Transformer)
    return model


def _require_cpu(dtype: str, device: torch.device) -> None:
    if device.type != "cpu":
        raise RequestError(f"packed weights are computed with on the CPU only and the device is {device}; use cpu")
    if dtype not in ("auto", "float32", "f32"):
        raise RequestError(f"dtype is {dtype!r}, but a model with packed weights computes in float32: leave it out")
