"""Induction heads put in by hand before training: the pair of heads that copies what followed an earlier occurrence.

Transformers learn to copy late (arXiv 2209.11895), after more tokens than a small budget holds, yet half of predicting
code is copying. Attention of layer 0 writes the previous token into the residual stream; heads of later layers look for
positions whose previous token is the current one, and pass on the token there. Everything goes through random
projections of the embeddings, so the pair works for every vocabulary, before and while the embeddings are learnt.
Structure before training, in the spirit of mimetic initialisation (arXiv 2305.09828); training is free to change it.

Shapes: D model width, P head width, n directions. Each pair uses the first query head of the first key/value head.
"""

import math

import torch
from torch import Tensor

from coterie.config import ModelConfig

__all__ = ["plant_induction_heads"]

_CONSTANT = 6.0  # of every embedding's first element, in units of the others' deviation: what position alone reads
_SHARPNESS = 7.5  # of attention to the previous token: e^4 between distances 1 and 0 or 2
_MATCH = 2.1  # gain of both sides of the search for the same token
_READ, _WRITE = 0.32, 0.2  # gains of values and of what is written, near those of random matrices


def plant_induction_heads(tensors: dict[str, Tensor], config: ModelConfig, *, std: float, seed: int) -> None:
    """Change weights that are initialised already: `tensors` by canonical name, embeddings of deviation `std`.

    Layer 0 gets the previous-token head, each later layer of the first half of the network a head that copies.
    """
    generator = torch.Generator().manual_seed(seed)
    D, P = config.hidden_size, config.head_dim
    n = min(P, (D - 1) // 2)  # directions for the current token, and as many for the previous one
    basis = _orthonormal(2 * n, D, generator)
    current_nD, previous_nD = basis[:n], basis[n:]
    tensors["embed"][:, 0] = _CONSTANT * std
    _look_back(tensors, config)
    _carry(tensors, 0, current_nD, previous_nD, P)
    for layer in range(1, max(2, config.num_hidden_layers // 2)):
        _search(tensors, layer, current_nD, previous_nD, config, generator)
        carried_nD = _orthonormal(n, D, generator)
        _carry(tensors, layer, carried_nD, carried_nD, P)


def _orthonormal(n: int, width: int, generator: torch.Generator) -> Tensor:
    """n orthonormal rows that ignore element 0."""
    square = torch.empty(width - 1, n).normal_(generator=generator)
    rows_nD = torch.zeros(n, width)
    rows_nD[:, 1:] = torch.linalg.qr(square).Q.T
    return rows_nD


def _frequencies(config: ModelConfig) -> Tensor:
    return config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)


def _look_back(tensors: dict[str, Tensor], config: ModelConfig) -> None:
    """Queries and keys of the constant alone, turned against each other by one position: the score peaks at distance 1.

    A pair of elements that turns by f a position has key a·(1, 0) and query a·(cos f, -sin f), so that the rotary
    embedding makes their product a²·cos((distance - 1)·f); a² is proportional to f.
    """
    f, half = _frequencies(config), config.head_dim // 2
    constant = _CONSTANT / math.sqrt(1 + _CONSTANT**2 / config.hidden_size)  # after the norm
    a = _SHARPNESS / constant * (config.head_dim / 64) ** 0.25 * f.sqrt()
    q, k = tensors["layers.0.attention.q"], tensors["layers.0.attention.k"]
    k[:half, 0] = a
    q[:half, 0], q[half : 2 * half, 0] = a * f.cos(), -a * f.sin()


def _carry(tensors: dict[str, Tensor], layer: int, read_nD: Tensor, write_nD: Tensor, head_dim: int) -> None:
    """What the head reads of the tokens it attends to, and where in the residual stream it writes that."""
    n = len(read_nD)
    tensors[f"layers.{layer}.attention.v"][:n] = _READ * read_nD
    o = tensors[f"layers.{layer}.attention.o"]
    o[:, :head_dim] = 0
    o[:, :n] = _WRITE * write_nD.T


def _search(
    tensors: dict[str, Tensor],
    layer: int,
    current_nD: Tensor,
    previous_nD: Tensor,
    config: ModelConfig,
    generator: torch.Generator,
) -> None:
    """Queries of the current token meet keys of the previous one, in the elements that turn too slowly to matter."""
    n, half = len(current_nD), config.head_dim // 2
    slow = torch.nonzero(_frequencies(config) * config.max_position_embeddings < 4 * math.pi).flatten()
    slow = slow if len(slow) >= 2 else torch.arange(half // 2, half)
    rows = torch.cat((slow, slow + half))
    mix = torch.linalg.qr(torch.empty(n, n).normal_(generator=generator)).Q[: len(rows)]
    q, k = tensors[f"layers.{layer}.attention.q"], tensors[f"layers.{layer}.attention.k"]
    q[rows[: len(mix)]] = _MATCH * (mix @ current_nD).to(q)
    k[rows[: len(mix)]] = _MATCH * (mix @ previous_nD).to(k)
