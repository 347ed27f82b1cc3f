"""Weights of 2 to 8 bits: what a format is, packed matrices, how numbers are chosen, which layer gets what."""

from coterie.quant.formats import FORMATS, Format
from coterie.quant.tensor import Codes, PackedTensor, pack, unpack

__all__ = ["FORMATS", "Codes", "Format", "PackedTensor", "pack", "unpack"]
