"""The native kernels of `csrc/`, as functions on tensors; `cpu_choice` says which there are.

Their promise, within one instruction set: a row's result has the same bits alone or among others, with one thread or
many, in one call or several. They hand plain addresses over, so every function checks shapes, types and memory first.
They use as many threads as torch does. Shapes are those of `csrc/kernels.h`.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels.cpu_choice import TYPES, can_train, is_usable, module, names, use, used
from coterie.kernels.cpu_matrices import (
    Packed,
    can_hold,
    decoder_handle,
    expert_handle,
    ggml_matrix,
    has_product,
    matrix_handle,
    packed_matrix,
    stacked_handle,
)
from coterie.kernels.pages import Pages
from coterie.kernels.reference import RouteEdits

__all__ = [
    "Packed",
    "add",
    "argmax",
    "attention",
    "can_hold",
    "can_train",
    "decode",
    "decoder_handle",
    "embed",
    "expert_handle",
    "experts",
    "ggml_matrix",
    "has_product",
    "is_usable",
    "linear",
    "matrix_handle",
    "module",
    "names",
    "plain_experts",
    "plain_linear",
    "repack",
    "rms_norm",
    "rotary_tables",
    "route",
    "stacked_handle",
    "swiglu",
    "use",
    "used",
]

_CACHE_TYPES = {**TYPES, torch.int8: 3}


def linear(
    x_TD: Tensor,
    handle: Any,
    n_outputs: int,
    norm: tuple[Tensor, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """norm(x) · matrices^T side by side -> [T, n_outputs], in x's type unless `dtype` is given."""
    T, D = x_TD.shape
    assert x_TD.stride(1) == 1
    weight_D, eps = norm if norm is not None else (None, 0.0)
    assert weight_D is None or (weight_D.is_contiguous() and weight_D.shape == (D,))
    out = torch.empty(T, n_outputs, dtype=dtype or x_TD.dtype)
    module().linear(
        handle, x_TD.data_ptr(), TYPES[x_TD.dtype], T, x_TD.stride(0) if T > 1 else D,
        0 if weight_D is None else weight_D.data_ptr(), 0 if weight_D is None else TYPES[weight_D.dtype], eps,
        out.data_ptr(), TYPES[out.dtype], n_outputs,
    )  # fmt: skip
    return out


def plain_linear(x_TD: Tensor, weight_ND: Tensor, norm: tuple[Tensor, float] | None = None) -> Tensor:
    """The same for one plain matrix."""
    assert weight_ND.shape[1] == x_TD.shape[1]
    return linear(x_TD, matrix_handle([weight_ND]), weight_ND.shape[0], norm)


def experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, handle: Any, width: int) -> Tensor:
    """Σ over slots, in order and in float32, of weight · down(silu(gate(x)) · up(x)); `width`: of an expert."""
    assert x_TD.is_contiguous() and ids_TK.is_contiguous() and ids_TK.dtype == torch.int32
    assert weights_TK.is_contiguous() and weights_TK.dtype == torch.float32
    T, D = x_TD.shape
    out = torch.empty_like(x_TD)
    module().experts(
        handle, x_TD.data_ptr(), TYPES[x_TD.dtype], T, D, width, ids_TK.data_ptr(), weights_TK.data_ptr(),
        ids_TK.shape[1], out.data_ptr(),
    )  # fmt: skip
    return out


def plain_experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """The same for stacked plain experts, gate rows before up rows."""
    handle = stacked_handle(gate_up_E2FD, down_EDF)
    return experts(x_TD, ids_TK, weights_TK, handle, down_EDF.shape[2])


def decode(
    handle: Any,
    x_TD: Tensor,
    rotary: tuple[Tensor, Tensor],
    pages: Pages,
    tables: Tensor,
    sequences_B3: Tensor,
    window: int | None,
    sizes: tuple[int, int, int, int],
    edits: RouteEdits | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of a decoder over x, which is overwritten; `sizes`: H, L, K, E. The routings of the layers.

    -> ids int32 [L, T, K], weights float32 [L, T, K], logits float32 [L, T, E]; with `edits`, whose bias is [N, L·E],
    their number of slots instead of K. The rest as in `attention`.
    """
    (T, D), (H, L, K, E) = x_TD.shape, sizes
    G, P = pages.k[0].shape[2:]
    assert x_TD.is_contiguous() and len(pages.addresses) == 4 * L and tables.is_contiguous()
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    S, edit_addresses = (K, (0, 0, 0)) if edits is None else _checked(edits, T, K, L * E)
    ids_LTS, weights_LTS = torch.empty(L, T, S, dtype=torch.int32), torch.empty(L, T, S)
    logits_LTE = torch.empty(L, T, E)
    module()
    handle.run(
        x_TD.data_ptr(), TYPES[x_TD.dtype], T, D, H, G, P, rotary[0].data_ptr(), rotary[1].data_ptr(),
        pages.addresses, _CACHE_TYPES[pages.dtype], tables.data_ptr(), tables.shape[1], sequences_B3.data_ptr(),
        len(sequences_B3), window or 0, P**-0.5, S, *edit_addresses, ids_LTS.data_ptr(), weights_LTS.data_ptr(),
        logits_LTE.data_ptr(),
    )  # fmt: skip
    return ids_LTS, weights_LTS, logits_LTE


def _checked(edits: RouteEdits, T: int, K: int, width: int) -> tuple[int, tuple[int, int, int]]:
    """How many slots, and the addresses of the edits."""
    of_row_T, bias, top_k_N, n_slots = edits
    assert of_row_T.shape == (T,) and bias.shape == (len(top_k_N), width) and n_slots >= K
    assert of_row_T.dtype == top_k_N.dtype == torch.int32 and bias.dtype == torch.float32
    assert all(t.is_contiguous() for t in (of_row_T, bias, top_k_N))
    return n_slots, (of_row_T.data_ptr(), bias.data_ptr(), top_k_N.data_ptr())


def argmax(x_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row, float32 [T], and its place, the first among equals, int64 [T]."""
    assert x_TV.is_contiguous()
    T, V = x_TV.shape
    values_T, ids_T = torch.empty(T), torch.empty(T, dtype=torch.int64)
    module().argmax(x_TV.data_ptr(), TYPES[x_TV.dtype], T, V, ids_T.data_ptr(), values_T.data_ptr())
    return values_T, ids_T


def attention(
    qkv: Tensor,
    rotary: tuple[Tensor, Tensor],
    pages: Pages,
    layer: int,
    tables: Tensor,
    sequences_B3: Tensor,
    window: int | None,
) -> Tensor:
    """Attention of new rows of B sequences over their cache, which takes the new keys and values -> [T, H·P].

    qkv [T, H + 2G, P]; cos and sin float32 [T, 1, P]; `tables` int32 [slots, n], the page of each 64 positions;
    `sequences_B3` int64: slot, first position, number of new rows of each, in the order of the rows.
    """
    T, n_heads, P = qkv.shape
    G = pages.k[layer].shape[2]
    H = n_heads - 2 * G
    assert qkv.is_contiguous() and tables.is_contiguous() and tables.dtype == torch.int32
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    out = torch.empty(T, H * P, dtype=qkv.dtype)
    module().attention(
        qkv.data_ptr(), TYPES[qkv.dtype], T, H, G, P, rotary[0].data_ptr(), rotary[1].data_ptr(),
        *pages.addresses[4 * layer : 4 * layer + 4], _CACHE_TYPES[pages.dtype], tables.data_ptr(), tables.shape[1],
        sequences_B3.data_ptr(), len(sequences_B3), window or 0, P**-0.5, out.data_ptr(),
    )  # fmt: skip
    return out


def rotary_tables(positions_T: Tensor, frequency_P: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin, float32 [T, 1, P], of `reference.rotary_tables`.

    torch's own cosine may come from a library whose threads stay awake after it and keep a core from the kernels.
    """
    assert positions_T.dtype == torch.int64 and positions_T.is_contiguous() and frequency_P.is_contiguous()
    T, P = len(positions_T), len(frequency_P)
    cos_T1P, sin_T1P = torch.empty(T, 1, P), torch.empty(T, 1, P)
    module().rotary(positions_T.data_ptr(), T, frequency_P.data_ptr(), P, cos_T1P.data_ptr(), sin_T1P.data_ptr())
    return cos_T1P, sin_T1P


def route(
    x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool, edits: RouteEdits | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """ids int32 [T, K], weights float32 [T, K], logits float32 [T, E]: see `reference.route` and `edited_route`."""
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == torch.float32
    (T, D), E = x_TD.shape, weight_ED.shape[0]
    S, edit_addresses = (top_k, (0, 0, 0)) if edits is None else _checked(edits, T, top_k, E)
    ids_TS, weights_TS = torch.empty(T, S, dtype=torch.int32), torch.empty(T, S)
    logits_TE = torch.empty(T, E)
    module().route(
        x_TD.data_ptr(), TYPES[x_TD.dtype], T, D, weight_ED.data_ptr(), E, S, top_k, renormalise, *edit_addresses,
        ids_TS.data_ptr(), weights_TS.data_ptr(), logits_TE.data_ptr(),
    )  # fmt: skip
    return ids_TS, weights_TS, logits_TE


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    assert x_TD.is_contiguous() and weight_D.is_contiguous()
    (T, D), out = x_TD.shape, torch.empty_like(x_TD)
    module().norm(
        x_TD.data_ptr(), TYPES[x_TD.dtype], T, D, weight_D.data_ptr(), TYPES[weight_D.dtype], eps, out.data_ptr()
    )
    return out


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up, in float32 and rounded once; the gate columns come first."""
    assert gate_up_T2F.is_contiguous()
    (T, width), F = gate_up_T2F.shape, gate_up_T2F.shape[1] // 2
    assert width == 2 * F
    out = torch.empty(T, F, dtype=gate_up_T2F.dtype)
    module().swiglu(gate_up_T2F.data_ptr(), TYPES[out.dtype], T, F, out.data_ptr())
    return out


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of one shape and type."""
    assert a.is_contiguous() and b.is_contiguous() and a.shape == b.shape and a.dtype == b.dtype
    out = torch.empty_like(a)
    module().add(a.data_ptr(), b.data_ptr(), TYPES[a.dtype], a.numel(), out.data_ptr())
    return out


def embed(ids_T: Tensor, table: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a packed table -> [T, K]."""
    assert ids_T.dtype == torch.int64 and ids_T.is_contiguous()
    assert len(ids_T) == 0 or (int(ids_T.min()) >= 0 and int(ids_T.max()) < table.shape[0])
    out = torch.empty(len(ids_T), table.shape[1], dtype=dtype)
    module().embed(packed_matrix(table), ids_T.data_ptr(), len(ids_T), out.data_ptr(), TYPES[dtype])
    return out


def repack(matrix: Any, out: Tensor) -> int:
    """A matrix of a GGUF file (`ggml_matrix`) into the packed layout, without loss; `out` uint8 of its packed size.

    Returns how many of its f16 scales are NaN or infinite.
    """
    assert out.is_contiguous() and out.dtype == torch.uint8
    n_bad: int = module().repack(matrix, out.data_ptr(), out.numel())
    return n_bad
