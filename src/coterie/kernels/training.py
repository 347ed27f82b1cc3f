"""The native kernels of training (`csrc/training.h`) as functions on tensors; `training_reference` is their twin.

These take what lies between the large matrix products, and attention; the products are torch's or those of
`training_products`. They run on torch's own threads where those can be had, since two sets of threads that wait in
turn for work would keep each other from the cores. A result has the same bits with any number of threads.
Shapes: n pairs (token, slot) sorted by expert, N of them in all; T tokens, K slots, E experts, D width, F expert width,
B sequences, S positions, H query heads, G key heads, r = H/G, P head width, C keys, V vocabulary.
"""

import ctypes
import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from coterie.kernels import cpu, gpu_training, training_reference
from coterie.kernels.training_reference import AdamSettings, Pairs

__all__ = [
    "AdamSettings",
    "Pairs",
    "adam_",
    "can_route",
    "causal_attention",
    "causal_attention_backward",
    "combine",
    "cross_entropy_",
    "has_causal_attention",
    "is_usable",
    "module",
    "operations",
    "rms_norm",
    "rms_norm_backward",
    "route",
    "route_backward",
    "sort_pairs",
    "square_sum",
    "swiglu",
    "swiglu_backward_",
]

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_WIDEST_HEAD = 256  # of the causal kernels
_MOST_EXPERTS = 64  # of the router's


def is_usable(*tensors: Tensor) -> bool:
    """Whether these kernels take such tensors: plain ones on a CPU, of a type they know."""
    return cpu.can_train() and all(
        t.is_cpu and t.dtype in _TYPES and type(t) in (Tensor, torch.nn.Parameter) for t in tensors
    )


def operations(*tensors: Tensor) -> Any:
    """The module to take the operations from: on a card that of Triton's kernels, else this one or its twin."""
    if gpu_training.is_usable(*tensors):
        return gpu_training.operations()
    return _THIS if is_usable(*tensors) else training_reference


def module() -> Any:
    """The native module, told whose threads to use."""
    native = cpu.module()
    native.set_team(_team())
    return native


@functools.cache
def _team() -> int:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch's library is linked with; 0: it has none."""
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            pass
    return 0


def sort_pairs(ids_TK: Tensor, n_experts: int) -> Pairs:
    """The pairs by expert; `ids_TK` int32, -1 for an unused slot."""
    (T, K), ids_TK = ids_TK.shape, ids_TK.contiguous()
    assert ids_TK.dtype == torch.int32
    pair_N, token_N, place_TK = (torch.empty(T * K, dtype=torch.int64) for _ in range(3))
    counts = torch.empty(n_experts, dtype=torch.int64)
    n = cpu.module().sort_pairs(
        ids_TK.data_ptr(), T, K, n_experts, pair_N.data_ptr(), token_N.data_ptr(), place_TK.data_ptr(),
        counts.data_ptr(),
    )  # fmt: skip
    assert n >= 0, "an expert's id is too large"
    return Pairs(pair_N[:n], token_N[:n], place_TK.view(T, K), counts.tolist())


def swiglu(h_n2F: Tensor, out_nF: Tensor) -> None:
    """out = silu(gate) · up."""
    n, F = out_nF.shape
    assert h_n2F.shape == (n, 2 * F) and h_n2F.is_contiguous() and out_nF.is_contiguous()
    assert h_n2F.dtype == out_nF.dtype
    module().swiglu_forward(h_n2F.data_ptr(), _TYPES[h_n2F.dtype], n, F, out_nF.data_ptr())


def swiglu_backward_(h_n2F: Tensor, weights_n: Tensor, grad_nF: Tensor, grad_h_n2F: Tensor, dots_n: Tensor) -> None:
    """`grad_nF`, the gradient of a = silu(gate) · up before the weight, becomes weight · a; dots = <a, grad>."""
    n, F = grad_nF.shape
    assert h_n2F.shape == grad_h_n2F.shape == (n, 2 * F) and weights_n.shape == dots_n.shape == (n,)
    assert h_n2F.dtype == grad_nF.dtype == grad_h_n2F.dtype and weights_n.dtype == dots_n.dtype == torch.float32
    assert all(t.is_contiguous() for t in (h_n2F, weights_n, grad_nF, grad_h_n2F, dots_n))
    module().swiglu_backward(
        h_n2F.data_ptr(), _TYPES[h_n2F.dtype], n, F, weights_n.data_ptr(), grad_nF.data_ptr(), grad_h_n2F.data_ptr(),
        dots_n.data_ptr(),
    )  # fmt: skip


def combine(rows_ND: Tensor, place_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Σ over slots, in order and in float32, of weight · row; a place of -1 adds nothing -> [T, D]."""
    (T, K), D = place_TK.shape, rows_ND.shape[1]
    assert rows_ND.is_contiguous() and place_TK.is_contiguous() and place_TK.dtype == torch.int64
    weights_TK = None if weights_TK is None else weights_TK.contiguous()
    assert weights_TK is None or (weights_TK.dtype == torch.float32 and weights_TK.shape == (T, K))
    out_TD = rows_ND.new_empty(T, D)
    module().combine(
        rows_ND.data_ptr(), _TYPES[rows_ND.dtype], T, K, D, place_TK.data_ptr(),
        0 if weights_TK is None else weights_TK.data_ptr(), out_TD.data_ptr(),
    )  # fmt: skip
    return out_TD


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.rms_norm`, and 1 / sqrt(mean(x²) + eps) of each row, float32 [T]."""
    (T, D), out_TD = x_TD.shape, torch.empty_like(x_TD)
    assert x_TD.is_contiguous() and weight_D.is_contiguous() and weight_D.dtype == x_TD.dtype
    inverse_T = torch.empty(T)
    module().norm_forward(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, weight_D.data_ptr(), eps, out_TD.data_ptr(), inverse_T.data_ptr()
    )
    return out_TD, inverse_T


def rms_norm_backward(x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    (T, D), grad_TD = x_TD.shape, grad_TD.contiguous()
    assert grad_TD.shape == x_TD.shape and grad_TD.dtype == x_TD.dtype
    grad_x_TD, grad_D = torch.empty_like(x_TD), torch.empty(D)
    module().norm_backward(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, weight_D.data_ptr(), inverse_T.data_ptr(), grad_TD.data_ptr(),
        grad_x_TD.data_ptr(), grad_D.data_ptr(),
    )  # fmt: skip
    return grad_x_TD, grad_D.to(weight_D.dtype)


def can_route(x_TD: Tensor, weight_ED: Tensor) -> bool:
    """Whether `route` takes them, and is faster than a matrix product."""
    return len(weight_ED) <= _MOST_EXPERTS and weight_ED.dtype == torch.float32 and is_usable(x_TD, weight_ED)


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The ids and the logits of `reference.route`; a `top_k` of 0 gives the logits alone."""
    (T, D), E = x_TD.shape, len(weight_ED)
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == torch.float32
    assert weight_ED.shape == (E, D) and 0 <= top_k <= E
    ids_TK, logits_TE = torch.empty(T, top_k, dtype=torch.int32), torch.empty(T, E)
    module().route_forward(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, weight_ED.data_ptr(), E, top_k, ids_TK.data_ptr(),
        logits_TE.data_ptr(),
    )  # fmt: skip
    return ids_TK, logits_TE


def route_backward(x_TD: Tensor, weight_ED: Tensor, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of the logits those of x and of the weight."""
    (T, D), E, grad_TE = x_TD.shape, len(weight_ED), grad_TE.contiguous()
    assert grad_TE.shape == (T, E) and grad_TE.dtype == torch.float32
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == torch.float32
    grad_x_TD, grad_ED = torch.empty_like(x_TD), torch.empty_like(weight_ED)
    module().route_backward(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, E, weight_ED.data_ptr(), grad_TE.data_ptr(), grad_x_TD.data_ptr(),
        grad_ED.data_ptr(),
    )  # fmt: skip
    return grad_x_TD, grad_ED


def has_causal_attention(qkv: Tensor, n_kv_heads: int) -> bool:
    """Whether `causal_attention` takes qkv [T, H + 2G, P]."""
    _, n_heads, P = qkv.shape
    fits = P % 2 == 0 and 0 < P <= _WIDEST_HEAD and n_heads % n_kv_heads == 0 and qkv.numel() > 0
    return fits and is_usable(qkv)


def causal_attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], B: int, G: int, documents_BS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """qkv [T, H + 2G, P], not yet turned -> [T, H, P], and log2 Σ exp(score) of each query, float32 [B, H, S].

    `documents_BS` numbers the documents as floats, exactly.
    """
    H = qkv.shape[1] - 2 * G
    out = qkv.new_empty(len(qkv), H, qkv.shape[2])
    logs_BHS = torch.empty(B, H, len(qkv) // B)
    module().causal_forward(*_causal(qkv, rotary, B, G, documents_BS), out.data_ptr(), logs_BHS.data_ptr())
    return out, logs_BHS


def causal_attention_backward(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], G: int, documents_BS: Tensor | None, out: Tensor, logs_BHS: Tensor,
    grad: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of qkv from that of `out` and what `causal_attention` returned."""
    grad, grad_qkv = grad.contiguous(), torch.empty_like(qkv)
    assert grad.shape == out.shape and grad.dtype == out.dtype == qkv.dtype and out.is_contiguous()
    module().causal_backward(
        *_causal(qkv, rotary, len(logs_BHS), G, documents_BS), out.data_ptr(), logs_BHS.data_ptr(), grad.data_ptr(),
        grad_qkv.data_ptr(),
    )  # fmt: skip
    return grad_qkv


def _causal(qkv: Tensor, rotary: tuple[Tensor, Tensor], B: int, G: int, documents_BS: Tensor | None) -> tuple[int, ...]:
    T, n_heads, P = qkv.shape
    assert qkv.is_contiguous() and T % B == 0 and (n_heads - 2 * G) % G == 0 and P % 2 == 0 and P <= _WIDEST_HEAD
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    assert documents_BS is None or (documents_BS.dtype == torch.float32 and documents_BS.is_contiguous())
    assert documents_BS is None or documents_BS.shape == (B, T // B)
    cos, sin = (t.data_ptr() for t in rotary)
    documents = 0 if documents_BS is None else documents_BS.data_ptr()
    return (qkv.data_ptr(), _TYPES[qkv.dtype], B, T // B, n_heads - 2 * G, G, P, cos, sin, documents)


def cross_entropy_(logits_nV: Tensor, target_n: Tensor) -> Tensor:
    """The loss of each row, float32 [n]; the logits become their gradients. A target below 0: no loss, no gradient."""
    n, V = logits_nV.shape
    target_n = target_n.contiguous()
    assert logits_nV.is_contiguous() and target_n.dtype == torch.int64 and (n == 0 or int(target_n.max()) < V)
    losses_n = torch.empty(n)
    module().cross_entropy(
        logits_nV.data_ptr(), _TYPES[logits_nV.dtype], n, V, target_n.data_ptr(), losses_n.data_ptr()
    )
    return losses_n


def adam_(
    master: Tensor, grad: Tensor, mean: Tensor, square: Tensor, out: Tensor | None, settings: AdamSettings
) -> None:
    """A step of AdamW in one sweep. `out` takes the rounded weights."""
    tensors = (master, mean, square)
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == grad.numel() for t in tensors)
    assert grad.is_contiguous() and (out is None or (out.is_contiguous() and out.dtype != torch.float32))
    module().adam(
        grad.numel(), master.data_ptr(), grad.data_ptr(), _TYPES[grad.dtype], mean.data_ptr(), square.data_ptr(),
        0 if out is None else out.data_ptr(), 0 if out is None else _TYPES[out.dtype], *settings,
    )  # fmt: skip


def square_sum(x: Tensor) -> float:
    """Σ x², in float32 for each 16,384 numbers and in float64 beyond."""
    assert x.is_contiguous()
    total: float = module().square_sum(x.data_ptr(), _TYPES[x.dtype], x.numel())
    return total


_THIS: ModuleType = sys.modules[__name__]
