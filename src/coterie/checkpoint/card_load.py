"""Models whose weights stay packed on a card: a packed folder, a quantised GGUF file, or quantised as they are read.

Matrix by matrix they are read, moved and re-laid there, so that neither memory holds the model twice. Activations and
the cache are bfloat16 where the card has it.
"""

import warnings
from collections.abc import Callable, Iterable

import torch

from coterie.checkpoint.card_memory import require_card_memory
from coterie.checkpoint.gguf import GgufCheckpoint
from coterie.checkpoint.gguf_parts import gguf_parts
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import PackedCheckpoint
from coterie.checkpoint.pieces import Files
from coterie.checkpoint.quantise import Planned, plain_parts, plan_parts, quantised_parts, remarks
from coterie.checkpoint.tied import require_tied_equal
from coterie.device import choose_dtype, has_bf16, has_fp8
from coterie.errors import RequestError, ResourceError
from coterie.kernels.packed import FP8
from coterie.model import Transformer
from coterie.quant.card import card_bytes, layout_of, to_card
from coterie.quant.formats import FORMATS, SPAN, Format
from coterie.quant.layers import install_on_card
from coterie.quant.recipe import Recipe
from coterie.quant.report import require_bits
from coterie.quant.tensor import PackedTensor

__all__ = ["load_packed_on_card", "load_quantised_on_card", "stays_packed"]

Progress = Callable[[int, int], None]
Parts = Iterable[tuple[str, PackedTensor | torch.Tensor]]


def stays_packed(checkpoint: Checkpoint, dtype: str) -> bool:
    """Whether a card computes with the file's own numbers: they are packed, and no dtype is asked for."""
    if isinstance(checkpoint, GgufCheckpoint):
        is_quantised = any(entry.dtype.lower() in FORMATS for entry in checkpoint.entries)
        return dtype == "auto" and is_quantised and checkpoint.config.intermediate_size % SPAN == 0
    return dtype == "auto" and isinstance(checkpoint, PackedCheckpoint)


def load_packed_on_card(checkpoint: Checkpoint, device: torch.device, progress: Progress | None = None) -> Transformer:
    """The model of a packed folder or of a quantised GGUF file."""
    dtype = _activations("auto", device)
    if isinstance(checkpoint, GgufCheckpoint):
        places = zip(checkpoint.entries, checkpoint.places, strict=True)
        need = sum(_bytes(FORMATS.get(entry.dtype.lower()), place.shape, dtype) for entry, place in places)
        _require(checkpoint, need, "they are", device)
        return _on_card(checkpoint, gguf_parts(checkpoint, progress), device, dtype)
    assert isinstance(checkpoint, PackedCheckpoint)
    need = sum(_bytes(part.format, part.shape, dtype) for part in checkpoint.parts)
    _require(checkpoint, need, "they are", device)
    parts = _counted(checkpoint.tensors().items(), checkpoint.nbytes, progress)
    model = _on_card(checkpoint, parts, device, dtype)
    require_bits(model, checkpoint.recipe, checkpoint.about["plain"])
    return model


def load_quantised_on_card(
    checkpoint: Checkpoint, type: str, dtype_name: str, device: torch.device, progress: Progress | None = None
) -> Transformer:
    """A checkpoint quantised as it is read, on the card; `type` is "fp8" or one of `recipe.TYPES`.

    Matrices that cannot be packed stay as the file has them, with a `UserWarning` that says why.
    """
    dtype, fp8 = _activations(dtype_name, device), type == "fp8"
    if fp8 and not has_fp8(device):
        raise RequestError(f"fp8 needs a card of compute capability 8.9 or later, which {device} has not; use int8")
    recipe = Recipe.of("int8" if fp8 else type)
    planned = plan_parts(checkpoint, recipe)
    if fp8:
        need = sum(_fp8_bytes(p, dtype) for p in planned)
    else:
        for sentence in remarks(planned):
            warnings.warn(f"{checkpoint.path}: {sentence}", stacklevel=2)
        need = sum(_bytes(p.format, p.shape, dtype) for p in planned)
    _require(checkpoint, need, type, device)
    with Files(checkpoint.files) as files:
        require_tied_equal(checkpoint, files)
    if fp8:
        return _on_card(checkpoint, plain_parts(checkpoint, planned, progress), device, dtype, fp8=True)
    model = _on_card(
        checkpoint, quantised_parts(checkpoint, planned, recipe, progress=progress, device=device), device, dtype
    )
    require_bits(model, recipe, [p.name for p in planned if p.reason])
    return model


def _activations(name: str, device: torch.device) -> torch.dtype:
    return choose_dtype(name, "bfloat16" if has_bf16(device) else "float16", device)


def _bytes(format: Format | None, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    width = shape[-1]
    n_rows = int(torch.Size(shape).numel() // width)
    return card_bytes(dtype if format is None else layout_of(format), n_rows, width)


def _fp8_bytes(p: Planned, dtype: torch.dtype) -> int:
    is_fp8 = len(p.shape) == 2 and p.part in ("attention", "experts", "head")
    return card_bytes(FP8, p.shape[0], p.shape[1]) if is_fp8 else _bytes(None, p.shape, dtype)


def _require(checkpoint: Checkpoint, need: int, name: str, device: torch.device) -> None:
    require_card_memory(checkpoint.path, checkpoint.config, need, name, device)


def _counted(parts: Parts, total: int, progress: Progress | None) -> Parts:
    done = 0
    for name, part in parts:
        yield name, part
        done += part.nbytes
        if progress is not None:
            progress(min(done, total), total)


def _on_card(
    checkpoint: Checkpoint, parts: Parts, device: torch.device, dtype: torch.dtype, *, fp8: bool = False
) -> Transformer:
    c = checkpoint.config
    try:
        with torch.inference_mode(False), torch.no_grad():
            moved = to_card(parts, device, dtype, c.num_local_experts, fp8=fp8)
            model = install_on_card(Transformer(c, dtype, "meta"), moved, dtype)
    except torch.OutOfMemoryError as e:
        raise ResourceError(f"{checkpoint.path}: {device} ran out of memory while it was loaded ({str(e)[:80]})") from e
    assert isinstance(model, Transformer)
    return model
