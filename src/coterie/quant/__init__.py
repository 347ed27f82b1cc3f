"""Weights of 2 to 8 bits: what a format is, packed matrices, how numbers are chosen, which layer gets what.

Formats and file blocks are known without torch; the names that need it are imported at first use.
"""

from typing import TYPE_CHECKING, Any

from coterie.quant.formats import FORMATS, Format

if TYPE_CHECKING:
    from coterie.quant.tensor import Codes, PackedTensor, pack, unpack

__all__ = ["FORMATS", "Codes", "Format", "PackedTensor", "pack", "unpack"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'coterie.quant' has no attribute {name!r}")
    from coterie.quant import tensor

    return getattr(tensor, name)
