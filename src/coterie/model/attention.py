"""Grouped-query attention; the cache that is passed in holds the keys and knows who may look at which.

Shapes: T tokens (of all sequences, one after the other), D model width, H query heads, G key/value heads, P head width,
B sequences of equal length in a segment, S new positions of each, C positions it may look at.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from coterie.kernels import attention, causal_self_attention, has_self_attention, rotate, self_attention

__all__ = ["Attention", "KeyValueCache", "Rotary", "Segment", "WholeSequences", "attend_segments", "window_mask"]

Rotary = tuple[Tensor, Tensor]


class Segment(NamedTuple):
    """B sequences that attend alike: rows start..stop of T are their B·S queries, sequence by sequence."""

    start: int
    stop: int
    k_BCGP: Tensor
    v_BCGP: Tensor
    mask_BSC: Tensor | None  # True: this query may look at that key; None: at all of them, or as is_causal says
    is_causal: bool


class KeyValueCache(Protocol):
    """What attention needs of a cache: take the new keys and values, let each query look at what it may see."""

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
        """qkv [T, H + 2G, P], not yet turned: queries, keys, values -> [T, H·P]."""


def window_mask(query_S: Tensor, key_C: Tensor, window: int | None) -> Tensor:
    """May a query at one position look at a key at another? True iff 0 <= query - key < window. Bool [1, S, C]."""
    distance_SC = query_S[:, None] - key_C[None, :]
    visible_SC = distance_SC >= 0
    return (visible_SC if window is None else visible_SC & (distance_SC < window)).unsqueeze(0)


class WholeSequences:
    """The cache of a teacher-forced pass: T is B whole sequences of equal length, nothing is kept.

    `documents_BS` (any integers) says which document each position belongs to: none looks into another one then. Its
    positions stay those of the row, which rotary attention, being relative, cannot tell from a start at 0.
    """

    def __init__(self, n_sequences: int, window: int | None, documents_BS: Tensor | None = None):
        self.n_sequences, self.window, self.documents_BS = n_sequences, window, documents_BS
        self._mask_BSC: Tensor | None = None  # the same in every layer

    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> Sequence[Segment]:
        k_BSGP, v_BSGP = (t.view(self.n_sequences, -1, *t.shape[1:]) for t in (k_TGP, v_TGP))
        mask_BSC = self._mask(k_BSGP.shape[1], k_TGP.device)
        return [Segment(0, len(k_TGP), k_BSGP, v_BSGP, mask_BSC, mask_BSC is None)]

    def _mask(self, S: int, device: torch.device) -> Tensor | None:
        """None where all that a causal mask leaves may be seen."""
        if self.documents_BS is None and (self.window is None or self.window >= S):
            return None
        if self._mask_BSC is not None:
            return self._mask_BSC
        at = torch.arange(S, device=device)
        visible = window_mask(at, at, self.window)
        if self.documents_BS is not None:
            document_BS = self.documents_BS.view(self.n_sequences, S)
            visible = visible & (document_BS[:, :, None] == document_BS[:, None, :])
        self._mask_BSC = visible
        return visible

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
        S = len(qkv) // self.n_sequences
        if torch.is_grad_enabled() and qkv.is_cpu and (self.window is None or self.window >= S):
            return causal_self_attention(qkv, rotary, self.n_sequences, n_kv_heads, self.documents_BS)
        if torch.is_grad_enabled() and has_self_attention(qkv):
            return self_attention(qkv, rotary, self.n_sequences, n_kv_heads, self._mask(S, qkv.device))
        return attend_segments(self, layer, qkv, rotary, n_kv_heads)


class Attention(nn.Module):
    """`qkv` is a Projection to (H + 2G)·P rows: queries, then keys, then values; `o` [D, H·P]."""

    def __init__(self, layer: int, qkv: nn.Module, o: nn.Module, n_heads: int, n_kv_heads: int, head_dim: int):
        super().__init__()
        self.layer, self.qkv, self.o = layer, qkv, o
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim

    def forward(self, x_TD: Tensor, rotary: Rotary, cache: KeyValueCache) -> Tensor:
        qkv = self.qkv(x_TD).view(x_TD.shape[0], self.n_heads + 2 * self.n_kv_heads, self.head_dim)
        y: Tensor = self.o(cache.attend(self.layer, qkv, rotary, self.n_kv_heads))
        return y


class _Extendable(Protocol):
    def extend(self, layer: int, k_TGP: Tensor, v_TGP: Tensor) -> Sequence[Segment]: ...


def attend_segments(cache: _Extendable, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
    """Attention in three steps: turn queries and keys, hand keys and values to the cache, attend segment by segment."""
    G, n = n_kv_heads, qkv.shape[1]
    cos, sin = (t.to(qkv.dtype) for t in rotary)
    qk, v_TGP = torch.split_with_sizes(qkv, (n - G, G), 1)
    q_THP, k_TGP = torch.split_with_sizes(rotate(qk, cos, sin), (n - 2 * G, G), 1)
    outs = [_attend(q_THP, s) for s in cache.extend(layer, k_TGP, v_TGP)]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attend(q_THP: Tensor, s: Segment) -> Tensor:
    B = s.k_BCGP.shape[0]
    q_BSHP = q_THP[s.start : s.stop].view(B, -1, *q_THP.shape[1:])
    return attention(q_BSHP, s.k_BCGP, s.v_BCGP, s.mask_BSC, s.is_causal).reshape(s.stop - s.start, -1)
