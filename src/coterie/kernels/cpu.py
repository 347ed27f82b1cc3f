"""The native kernels of `csrc/`, as functions on tensors. The only importer of `coterie._native`, which may be absent.

Their promise, within one instruction set: a row's result has the same bits alone or among others, with one thread or
many, in one call or several. They hand plain addresses over, so every function checks shapes, types and memory first.
They use as many threads as torch does. Which instruction set: the best this processor has, or the one that
`COTERIE_KERNELS` or `use` names; "reference" means none of them. Shapes are those of `csrc/kernels.h`.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.errors import RequestError, nearest

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

ENVIRONMENT = "COTERIE_KERNELS"
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_PACKED, _GGML = 3, 4
_SCALES = {"f16": 0, "f16_offset": 1, "super": 2, "super_min": 3, "super_nibble": 4}
_NATIVE_FORMATS = {  # (bits, scales): those that have a product
    *((bits, "f16") for bits in (3, 4, 5, 6, 8)),
    *((bits, "f16_offset") for bits in (3, 4, 5, 6)),
    *((2, "super_nibble"), (3, "super"), (4, "super_min"), (5, "super_min"), (6, "super")),
}


class FormatFields(Protocol):
    """What the kernels need to know of `quant.formats.Format`."""

    @property
    def bits(self) -> int: ...
    @property
    def unit(self) -> int: ...
    @property
    def group_units(self) -> int: ...
    @property
    def scales(self) -> str: ...


class Packed(Protocol):
    """A matrix [N, K] in the interleaved layout of docs/packed.md: `quant.tensor.PackedTensor`."""

    @property
    def format(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def data(self) -> Tensor: ...
    def dequantise(self) -> Tensor: ...


class _State:
    """What was chosen; made at the first use, so that importing reads neither the environment nor the processor."""

    def __init__(self) -> None:
        self.module: Any = None
        self.name = "reference"
        self.n_threads = 0
        try:
            self.module = import_module("coterie._native")
        except ImportError:
            pass
        self.choose(os.environ.get(ENVIRONMENT) or self.names()[0])

    def names(self) -> list[str]:
        return [*(self.module.names() if self.module else ()), "reference"]

    def choose(self, name: str) -> None:
        if name not in self.names():
            raise RequestError(
                f"the kernels {name!r} are not there, expected one of {', '.join(self.names())}"
                f"{nearest(name, self.names())}"
            )
        if name != "reference":
            self.module.choose(name)
        self.name = name


@functools.cache
def _state() -> _State:
    return _State()


def names() -> list[str]:
    """What can be chosen on this machine, the fastest first; the last is always "reference"."""
    return _state().names()


def used() -> str:
    """The instruction set in use: avx512bf16, avx512vnni, avx2, neon, portable, or reference."""
    return _state().name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within it the kernels are those of one instruction set; `RequestError` where this machine has not got them."""
    state = _state()
    before = state.name
    state.choose(name)
    try:
        yield
    finally:
        state.choose(before)


def is_usable(x: Tensor) -> bool:
    """Whether the native kernels take this input: on a CPU, no gradient or autocast, a type they know."""
    is_inference = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return is_inference and x.is_cpu and x.dtype in _TYPES and _state().name != "reference"


def can_train() -> bool:
    """Whether the native kernels of training are there and in use; autocast is torch's business."""
    return _state().name != "reference" and not torch.is_autocast_enabled("cpu")


def module() -> Any:
    """The native module, told how many threads torch uses."""
    state = _state()
    n_threads = torch.get_num_threads()
    if n_threads != state.n_threads:
        state.module.set_threads(n_threads)
        state.n_threads = n_threads
    return state.module


def has_product(format: FormatFields) -> bool:
    """Whether there is a native product for a format."""
    return (format.bits, format.scales) in _NATIVE_FORMATS


def can_hold(parts: "Sequence[Packed | Tensor | Any]") -> bool:
    """Whether there are native kernels on this machine, and a product for each of these matrices on the CPU."""
    if _state().module is None:
        return False
    return all(
        part.is_cpu and part.dtype in _TYPES
        if isinstance(part, Tensor)
        else has_product(part.format) and (hasattr(part, "native") or part.data.is_cpu)
        for part in parts
    )


def _format(format: FormatFields | None) -> Any:
    module = _state().module
    if format is None:
        return module.Format(0, 0, 0, 0)
    assert has_product(format), f"no native product for {format}"
    return module.Format(format.bits, format.unit, format.group_units, _SCALES[format.scales])


def _packed(part: Packed) -> Any:
    N, K = part.shape
    assert part.data.is_cpu and part.data.is_contiguous() and part.data.dtype == torch.uint8
    assert K % 32 == 0 and part.data.numel() == _state().module.packed_bytes(_format(part.format), N, K)
    return _state().module.Matrix(_PACKED, _format(part.format), N, K, part.data.data_ptr())


def _plain(weight_ND: Tensor) -> Any:
    N, D = weight_ND.shape
    assert weight_ND.is_cpu and weight_ND.is_contiguous()
    return _state().module.Matrix(_TYPES[weight_ND.dtype], _format(None), N, D, weight_ND.data_ptr())


def ggml_matrix(
    format: FormatFields, N: int, K: int, rows: int, *, half: int = 0, up: int = 0, head_rows: int = 0
) -> Any:
    """A matrix that stays as a GGUF file has it, its blocks at address `rows`.

    `half` > 0: rows of gate at `rows` and of up at `up`, so many each, alternate as in a packed gate_up [2·half, K].
    `head_rows` > 0: the file interleaves the rows of each head.
    """
    return _state().module.Matrix(_GGML, _format(format), N, K, rows, half, up, head_rows)


def matrix_handle(parts: "Sequence[Packed | Tensor | Any]") -> Any:
    """What `linear` multiplies by: matrices side by side, packed or plain. It does not keep their memory alive."""
    handle = _state().module.Matrices()
    for part in parts:
        handle.append(_any_matrix(part))
    return handle


def expert_handle(gate_up: "Sequence[Packed | Any]", down: "Sequence[Packed | Any]") -> Any:
    """What `experts` multiplies by: gate_up (packed with alternating panels, or plain, gate first) and down of each."""
    handle = _state().module.Experts()
    for first, second in zip(gate_up, down, strict=True):
        handle.append(_plain_gate_up(first) if isinstance(first, Tensor) else _any_matrix(first), _any_matrix(second))
    return handle


def _plain_gate_up(weight_2FD: Tensor) -> Any:
    (N, D), address = weight_2FD.shape, weight_2FD.data_ptr()
    assert weight_2FD.is_cpu and weight_2FD.is_contiguous()
    up = address + N // 2 * D * weight_2FD.element_size()
    return _state().module.Matrix(_TYPES[weight_2FD.dtype], _format(None), N, D, address, N // 2, up)


def _any_matrix(part: Any) -> Any:
    if isinstance(part, Tensor):
        return _plain(part)
    return part.native() if hasattr(part, "native") else _packed(part)


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
        handle, x_TD.data_ptr(), _TYPES[x_TD.dtype], T, x_TD.stride(0) if T > 1 else D,
        0 if weight_D is None else weight_D.data_ptr(), 0 if weight_D is None else _TYPES[weight_D.dtype], eps,
        out.data_ptr(), _TYPES[out.dtype], n_outputs,
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
        handle, x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, width, ids_TK.data_ptr(), weights_TK.data_ptr(),
        ids_TK.shape[1], out.data_ptr(),
    )  # fmt: skip
    return out


def plain_experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """The same for stacked plain experts, gate rows before up rows."""
    handle = stacked_handle(gate_up_E2FD, down_EDF)
    return experts(x_TD, ids_TK, weights_TK, handle, down_EDF.shape[2])


def stacked_handle(gate_up_E2FD: Tensor, down_EDF: Tensor) -> Any:
    """What `experts` multiplies by, of stacked plain experts."""
    E, D, F = down_EDF.shape
    assert gate_up_E2FD.shape == (E, 2 * F, D) and gate_up_E2FD.is_contiguous() and down_EDF.is_contiguous()
    handle = _state().module.Experts()
    handle.stacked(
        _TYPES[gate_up_E2FD.dtype], gate_up_E2FD.data_ptr(), _TYPES[down_EDF.dtype], down_EDF.data_ptr(), E, D, F
    )
    return handle


def decoder_handle(layers: Sequence[tuple[Any, ...]]) -> Any:
    """What `decode` runs: of each layer qkv and o (`matrix_handle`), two norms' weights, epsilon, router, experts.

    `router` has `weight` [E, D] float32, `top_k` and `renormalise`; `experts` is a handle and their width.
    """
    handle = _state().module.Decoder()
    for qkv, o, attention_norm_D, moe_norm_D, eps, router, (expert, width) in layers:
        assert attention_norm_D.dtype == moe_norm_D.dtype and router.weight.dtype == torch.float32
        assert all(t.is_contiguous() for t in (attention_norm_D, moe_norm_D, router.weight))
        handle.append(
            qkv, o, attention_norm_D.data_ptr(), moe_norm_D.data_ptr(), _TYPES[moe_norm_D.dtype], eps,
            router.weight.data_ptr(), len(router.weight), router.top_k, router.renormalise, expert, width,
        )  # fmt: skip
    return handle


def decode(
    handle: Any,
    x_TD: Tensor,
    rotary: tuple[Tensor, Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    sequences_B3: Tensor,
    window: int | None,
    sizes: tuple[int, int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of a decoder over x, which is overwritten; `sizes`: H, L, K, E. The routings of the layers.

    -> ids int32 [L, T, K], weights float32 [L, T, K], logits float32 [L, T, E]. The rest as in `attention`.
    """
    (T, D), (H, L, K, E) = x_TD.shape, sizes
    n_places, G, P = k[0].shape[1:]
    assert x_TD.is_contiguous() and all(t.is_contiguous() for t in (*k, *v))
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    ids_LTK, weights_LTK = torch.empty(L, T, K, dtype=torch.int32), torch.empty(L, T, K)
    logits_LTE = torch.empty(L, T, E)
    module()
    handle.run(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, H, G, P, rotary[0].data_ptr(), rotary[1].data_ptr(),
        [t.data_ptr() for t in k], [t.data_ptr() for t in v], _TYPES[k[0].dtype], n_places,
        sequences_B3.data_ptr(), len(sequences_B3), window or 0, P**-0.5, ids_LTK.data_ptr(),
        weights_LTK.data_ptr(), logits_LTE.data_ptr(),
    )  # fmt: skip
    return ids_LTK, weights_LTK, logits_LTE


def argmax(x_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row, float32 [T], and its place, the first among equals, int64 [T]."""
    assert x_TV.is_contiguous()
    T, V = x_TV.shape
    values_T, ids_T = torch.empty(T), torch.empty(T, dtype=torch.int64)
    module().argmax(x_TV.data_ptr(), _TYPES[x_TV.dtype], T, V, ids_T.data_ptr(), values_T.data_ptr())
    return values_T, ids_T


def attention(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], k: Tensor, v: Tensor, sequences_B3: Tensor, window: int | None
) -> Tensor:
    """Attention of new rows of B sequences over their cache, which takes the new keys and values -> [T, H·P].

    qkv [T, H + 2G, P]; cos and sin float32 [T, 1, P]; k, v [slots, places, G, P]; `sequences_B3` int64 on the CPU:
    slot, first position, number of new rows of each, in the order of the rows.
    """
    T, n_heads, P = qkv.shape
    n_places, G = k.shape[1:3]
    H = n_heads - 2 * G
    assert qkv.is_contiguous() and k.is_contiguous() and v.is_contiguous() and k.shape == v.shape
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == T * P for t in rotary)
    out = torch.empty(T, H * P, dtype=qkv.dtype)
    module().attention(
        qkv.data_ptr(), _TYPES[qkv.dtype], T, H, G, P, rotary[0].data_ptr(), rotary[1].data_ptr(), k.data_ptr(),
        v.data_ptr(), _TYPES[k.dtype], n_places, sequences_B3.data_ptr(), len(sequences_B3), window or 0, P**-0.5,
        out.data_ptr(),
    )  # fmt: skip
    return out


def rotary_tables(positions_T: Tensor, frequency_P: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin, float32 [T, 1, P], of `reference.rotary_tables`.

    torch's own cosine may come from a library whose threads stay awake after it and keep a core from the kernels.
    """
    assert positions_T.dtype == torch.int64 and positions_T.is_contiguous() and frequency_P.is_contiguous()
    T, P = len(positions_T), len(frequency_P)
    cos_T1P, sin_T1P = torch.empty(T, 1, P), torch.empty(T, 1, P)
    _state().module.rotary(positions_T.data_ptr(), T, frequency_P.data_ptr(), P, cos_T1P.data_ptr(), sin_T1P.data_ptr())
    return cos_T1P, sin_T1P


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """ids int32 [T, K], weights float32 [T, K], logits float32 [T, E] of a softmax over the `top_k` largest."""
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == torch.float32
    (T, D), E = x_TD.shape, weight_ED.shape[0]
    ids_TK, weights_TK = torch.empty(T, top_k, dtype=torch.int32), torch.empty(T, top_k)
    logits_TE = torch.empty(T, E)
    module().route(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, weight_ED.data_ptr(), E, top_k, renormalise, ids_TK.data_ptr(),
        weights_TK.data_ptr(), logits_TE.data_ptr(),
    )  # fmt: skip
    return ids_TK, weights_TK, logits_TE


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    assert x_TD.is_contiguous() and weight_D.is_contiguous()
    (T, D), out = x_TD.shape, torch.empty_like(x_TD)
    module().norm(
        x_TD.data_ptr(), _TYPES[x_TD.dtype], T, D, weight_D.data_ptr(), _TYPES[weight_D.dtype], eps, out.data_ptr()
    )
    return out


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up, in float32 and rounded once; the gate columns come first."""
    assert gate_up_T2F.is_contiguous()
    (T, width), F = gate_up_T2F.shape, gate_up_T2F.shape[1] // 2
    assert width == 2 * F
    out = torch.empty(T, F, dtype=gate_up_T2F.dtype)
    module().swiglu(gate_up_T2F.data_ptr(), _TYPES[out.dtype], T, F, out.data_ptr())
    return out


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of one shape and type."""
    assert a.is_contiguous() and b.is_contiguous() and a.shape == b.shape and a.dtype == b.dtype
    out = torch.empty_like(a)
    module().add(a.data_ptr(), b.data_ptr(), _TYPES[a.dtype], a.numel(), out.data_ptr())
    return out


def embed(ids_T: Tensor, table: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a packed table -> [T, K]."""
    assert ids_T.dtype == torch.int64 and ids_T.is_contiguous()
    assert len(ids_T) == 0 or (int(ids_T.min()) >= 0 and int(ids_T.max()) < table.shape[0])
    out = torch.empty(len(ids_T), table.shape[1], dtype=dtype)
    module().embed(_packed(table), ids_T.data_ptr(), len(ids_T), out.data_ptr(), _TYPES[dtype])
    return out


def repack(matrix: Any, out: Tensor) -> int:
    """A matrix of a GGUF file (`ggml_matrix`) into the packed layout, without loss; `out` uint8 of its packed size.

    Returns how many of its f16 scales are NaN or infinite.
    """
    assert out.is_contiguous() and out.dtype == torch.uint8
    n_bad: int = module().repack(matrix, out.data_ptr(), out.numel())
    return n_bad
