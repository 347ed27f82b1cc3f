"""A GGUF file as a model whose weights stay quantised: interleaved in memory where that fits, else mapped in place."""

from collections.abc import Callable

import torch

from coterie.checkpoint.expect import RESERVE
from coterie.checkpoint.gguf import GgufCheckpoint
from coterie.checkpoint.gguf_parts import read_gguf_parts
from coterie.checkpoint.numbers import size_text
from coterie.device import available_memory
from coterie.errors import ResourceError
from coterie.kernels import cpu
from coterie.model import Transformer
from coterie.quant.formats import SPAN
from coterie.quant.layers import install

__all__ = ["fits_interleaved", "load_gguf", "stays_quantised"]


def stays_quantised(checkpoint: GgufCheckpoint, dtype: str, device: torch.device) -> bool:
    """Whether the file's own numbers are computed with: on a CPU with native kernels, unless a dtype is asked for.

    bf16 and f32 files are plain models like any other, and so are experts too narrow for the interleaved layout.
    """
    is_plain = {entry.dtype for entry in checkpoint.entries} <= {"F32", "BF16"}
    is_even = checkpoint.config.intermediate_size % SPAN == 0
    return dtype == "auto" and device.type == "cpu" and cpu.used() != "reference" and not is_plain and is_even


def fits_interleaved(checkpoint: GgufCheckpoint) -> bool:
    """Whether memory holds a copy of the weights and some more."""
    return checkpoint.nbytes + RESERVE <= available_memory("cpu")


def load_gguf(checkpoint: GgufCheckpoint, progress: Callable[[int, int], None] | None = None) -> Transformer:
    """The model; activations are float32, keys and values float16."""
    in_place = not fits_interleaved(checkpoint)
    c = checkpoint.config
    always = checkpoint.nbytes * (1 - _share_of_experts(checkpoint))
    if in_place and always + RESERVE > available_memory("cpu"):
        raise ResourceError(
            f"{checkpoint.path} needs {size_text(int(always) + RESERVE)} of memory beside its experts and the machine "
            f"has {size_text(available_memory('cpu'))} free; close other programs or use a smaller model"
        )
    parts = read_gguf_parts(checkpoint, progress, in_place=in_place)
    model = install(Transformer(c, torch.float32, "meta"), parts)
    assert isinstance(model, Transformer)
    return model


def _share_of_experts(checkpoint: GgufCheckpoint) -> float:
    experts = sum(e.nbytes for e, p in zip(checkpoint.entries, checkpoint.places, strict=True) if ".experts." in p.name)
    return experts / checkpoint.nbytes
