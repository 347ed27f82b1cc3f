"""Attention over the paged cache in Triton: keeps the keys and values of a pass's new rows, then lets rows attend.

What it computes is `engine.plan.Plan.extend` with `model.attention.attend_segments`: position p of a sequence sees
positions max(0, p - window + 1)..p. Here rows are turned in float32 whatever their type. Sequences of one new row are
one launch (`triton_decode_attention`), those of more two (`triton_prompt_attention`), all of them together.

Shapes: T rows of all sequences, H query heads, G key/value heads, P head width.
"""

import torch
from torch import Tensor

from coterie.kernels.pages import Pages
from coterie.kernels.triton_batch import Batch
from coterie.kernels.triton_decode_attention import attend_singles
from coterie.kernels.triton_prompt_attention import attend_prompts

__all__ = ["Batch", "attention"]


def attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], pages: Pages, layer: int, batch: Batch, window: int | None
) -> Tensor:
    """qkv [T, H + 2G, P], not yet turned: queries, keys, values; rotary as `reference.rotary_tables` -> [T, H·P].

    Dot products take keys and values in the type of qkv; softmax and sums are float32.
    """
    T, N, P = qkv.shape
    H = N - 2 * pages.k[layer].shape[2]
    assert qkv.is_contiguous() and batch.n_rows == T and P % 2 == 0
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    out = torch.empty((T, H * P), dtype=qkv.dtype, device=qkv.device)
    if batch.n_single:
        attend_singles(qkv, rotary, pages, layer, batch, window, out)
    if not batch.is_decode:
        attend_prompts(qkv, rotary, pages, layer, batch, window, out)
    return out
