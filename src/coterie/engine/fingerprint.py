"""Which model it is: a digest of its configuration and of its weights as they are in memory, packed ones too.

Of a large matrix 64 evenly spaced pieces are read, so that the digest of a model of a hundred gigabytes takes seconds;
a change to any expert changes some of them. The same checkpoint in another type or format is another model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from coterie.kernels.packed import Packed
from coterie.model import Transformer
from coterie.quant.mapped import MappedMatrix
from coterie.quant.tensor import PackedTensor

__all__ = ["fingerprint", "text_digest"]

_PIECES, _PIECE = 64, 1 << 16  # of a matrix, bytes of each


def fingerprint(model: Transformer) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True, default=str).encode())
    for name, tensor in _weights(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for piece in _pieces(tensor.detach().reshape(-1).view(torch.uint8)):
            digest.update(piece.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def text_digest(texts: Sequence[str]) -> str:
    """32 hexadecimal digits of a list of strings, such as the pieces of a vocabulary."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:32]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, then what packed layers hold beside them."""
    yield from sorted(model.state_dict().items())
    for path, module in model.named_modules():
        for name, held in sorted(vars(module).items()):
            for number, part in enumerate(held if isinstance(held, tuple) else (held,)):
                if isinstance(part, Packed):
                    yield from (
                        (f"{path}.{name}.{number}.{i} {part.layout.label}", t) for i, t in enumerate(part.tensors)
                    )
                elif isinstance(part, PackedTensor | MappedMatrix):
                    yield f"{path}.{name}.{number} {part.format.label}", _bytes_of(part)


def _bytes_of(part: PackedTensor | MappedMatrix) -> Tensor:
    if isinstance(part, PackedTensor):
        return part.data
    rows = [part.rows] if part.up is None else [part.rows, part.up]
    chosen = [piece for row in rows for piece in _pieces(torch.from_numpy(row).reshape(-1))]
    return torch.cat(chosen)


def _pieces(bytes_N: Tensor) -> Iterator[Tensor]:
    n = len(bytes_N)
    if n <= _PIECES * _PIECE:
        yield bytes_N
        return
    for number in range(_PIECES):
        start = number * (n - _PIECE) // (_PIECES - 1)
        yield bytes_N[start : start + _PIECE]
