"""The number types of weight files: their names in every dialect, a test for NaN on raw bytes, conversion by pieces.

The test reads bits as whole numbers: all exponent bits set is Inf or NaN, so among the non-negative patterns those
are the largest signed numbers, and among the negative ones the largest unsigned. Two `max` at the speed of memory, no
temporary. Example, bf16: Inf is 0x7F80 and -Inf 0xFF80; NaN is anything above either. torch is imported only where
numbers are converted.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.errors import CheckpointError, ConfigError, nearest
from coterie.quant.ggml_blocks import dequantise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CODES",
    "FILE_DTYPES",
    "FILE_TYPES",
    "as_torch",
    "convert_into",
    "file_bytes",
    "file_type",
    "plain",
    "require_finite",
    "size_text",
]

FILE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the types weights may have -> torch's names
CODES = {name: code for code, name in FILE_DTYPES.items()}
FILE_TYPES = {  # what a user may call them -> (torch's name, the file's code)
    alias: (name, CODES[name])
    for name, aliases in (
        ("float32", ("float32", "f32", "fp32")),
        ("float16", ("float16", "f16", "fp16")),
        ("bfloat16", ("bfloat16", "bf16")),
    )
    for alias in aliases
}
_BITS: dict[str, tuple[Any, Any, int, int]] = {  # code: signed, unsigned, +Inf, -Inf
    "F32": (np.int32, np.uint32, 0x7F800000, 0xFF800000),
    "F16": (np.int16, np.uint16, 0x7C00, 0xFC00),
    "BF16": (np.int16, np.uint16, 0x7F80, 0xFF80),
}
_PIECE = 4 << 20  # elements converted at a time


def file_type(name: str) -> tuple[str, str]:
    """(torch's name, the file's code) of a type by any of its names; `ConfigError` for an unknown one."""
    if name not in FILE_TYPES:
        raise ConfigError(f"the type {name!r} is unknown, expected bf16, f16 or f32{nearest(name, FILE_TYPES)}")
    return FILE_TYPES[name]


def size_text(n_bytes: int) -> str:
    """`93.4 GB`, `67.2 MB`, `512 bytes`: a size for a message."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:,.1f} {unit}"
    return f"{n_bytes} bytes"


def require_finite(raw: "np.ndarray[Any, np.dtype[np.uint8]]", code: str, what: str) -> None:
    """`CheckpointError` that names `what` if a number among the bytes is NaN or infinite."""
    signed, unsigned, positive, negative = _BITS[code]
    if raw.size == 0 or (raw.view(signed).max() < positive and raw.view(unsigned).max() < negative):
        return
    bits = raw.view(unsigned)
    magnitude = bits & (positive | (positive - 1))
    n_nan, n_inf = int((magnitude > positive).sum()), int((magnitude == positive).sum())
    found = " and ".join(f"{n} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "Inf")) if n)
    raise CheckpointError(f"{what} contains {found}; the weights are damaged, get them again")


def plain(raw: "np.ndarray[Any, np.dtype[np.uint8]]", code: str) -> tuple["np.ndarray[Any, np.dtype[np.uint8]]", str]:
    """The bytes and their type; whole blocks of a quantised type as the float32 that they stand for."""
    if code in FILE_DTYPES:
        return raw, code
    return dequantise(code, raw.reshape(1, -1)).view(np.uint8).reshape(-1), "F32"


def as_torch(raw: "np.ndarray[Any, np.dtype[np.uint8]]", code: str) -> "Tensor":
    """The bytes as a flat tensor that shares their memory."""
    import torch

    return torch.from_numpy(raw).view(getattr(torch, FILE_DTYPES[code]))


def convert_into(target: "Tensor", source: "Tensor", what: str) -> None:
    """Copy finite numbers to another type; `CheckpointError` if one is too large for it (float16 ends at 65504)."""
    import torch

    target.copy_(source)
    if target.dtype == torch.float16 and source.dtype != torch.float16 and not bool(target.isfinite().all()):
        raise CheckpointError(
            f"{what} contains {float(source.abs().max()):.4g}, beyond float16's 65504; use bf16 or f32"
        )


def file_bytes(flat: "Tensor", code: str, what: str) -> "Iterator[np.ndarray[Any, np.dtype[np.uint8]]]":
    """The numbers of a flat tensor as bytes of a file type, piece by piece; NaN, Inf and overflow are errors."""
    import torch

    dtype: torch.dtype = getattr(torch, FILE_DTYPES[code])
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE].cpu()
        converted = torch.empty(piece.shape, dtype=dtype)
        convert_into(converted, piece, what)
        raw = converted.view(torch.uint8).numpy()
        require_finite(raw, code, what)
        yield raw
