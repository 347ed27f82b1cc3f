"""Handles of the matrices that native kernels multiply by: plain, packed, or as a GGUF file has them.

A handle holds addresses, not memory: whoever makes one keeps its matrices alive. Shapes: N rows, K or D columns,
E experts, F expert width.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.kernels.cpu_choice import TYPES, state

__all__ = [
    "FormatFields",
    "Packed",
    "can_hold",
    "decoder_handle",
    "expert_handle",
    "ggml_matrix",
    "has_product",
    "matrix_handle",
    "packed_matrix",
    "stacked_handle",
]

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


def has_product(format: FormatFields) -> bool:
    """Whether there is a native product for a format."""
    return (format.bits, format.scales) in _NATIVE_FORMATS


def can_hold(parts: "Sequence[Packed | Tensor | Any]") -> bool:
    """Whether there are native kernels on this machine, and a product for each of these matrices on the CPU."""
    if state().module is None:
        return False
    return all(
        part.is_cpu and part.dtype in TYPES
        if isinstance(part, Tensor)
        else has_product(part.format) and (hasattr(part, "native") or part.data.is_cpu)
        for part in parts
    )


def _format(format: FormatFields | None) -> Any:
    module = state().module
    if format is None:
        return module.Format(0, 0, 0, 0)
    assert has_product(format), f"no native product for {format}"
    return module.Format(format.bits, format.unit, format.group_units, _SCALES[format.scales])


def packed_matrix(part: Packed) -> Any:
    """A packed matrix by itself."""
    N, K = part.shape
    assert part.data.is_cpu and part.data.is_contiguous() and part.data.dtype == torch.uint8
    assert K % 32 == 0 and part.data.numel() == state().module.packed_bytes(_format(part.format), N, K)
    return state().module.Matrix(_PACKED, _format(part.format), N, K, part.data.data_ptr())


def _plain(weight_ND: Tensor) -> Any:
    N, D = weight_ND.shape
    assert weight_ND.is_cpu and weight_ND.is_contiguous()
    return state().module.Matrix(TYPES[weight_ND.dtype], _format(None), N, D, weight_ND.data_ptr())


def ggml_matrix(
    format: FormatFields, N: int, K: int, rows: int, *, half: int = 0, up: int = 0, head_rows: int = 0
) -> Any:
    """A matrix that stays as a GGUF file has it, its blocks at address `rows`.

    `half` > 0: rows of gate at `rows` and of up at `up`, so many each, alternate as in a packed gate_up [2·half, K].
    `head_rows` > 0: the file interleaves the rows of each head.
    """
    return state().module.Matrix(_GGML, _format(format), N, K, rows, half, up, head_rows)


def matrix_handle(parts: "Sequence[Packed | Tensor | Any]") -> Any:
    """What `linear` multiplies by: matrices side by side, packed or plain. It does not keep their memory alive."""
    handle = state().module.Matrices()
    for part in parts:
        handle.append(_any_matrix(part))
    return handle


def expert_handle(gate_up: "Sequence[Packed | Any]", down: "Sequence[Packed | Any]") -> Any:
    """What `experts` multiplies by: gate_up (packed with alternating panels, or plain, gate first) and down of each."""
    handle = state().module.Experts()
    for first, second in zip(gate_up, down, strict=True):
        handle.append(_plain_gate_up(first) if isinstance(first, Tensor) else _any_matrix(first), _any_matrix(second))
    return handle


def _plain_gate_up(weight_2FD: Tensor) -> Any:
    (N, D), address = weight_2FD.shape, weight_2FD.data_ptr()
    assert weight_2FD.is_cpu and weight_2FD.is_contiguous()
    up = address + N // 2 * D * weight_2FD.element_size()
    return state().module.Matrix(TYPES[weight_2FD.dtype], _format(None), N, D, address, N // 2, up)


def _any_matrix(part: Any) -> Any:
    if isinstance(part, Tensor):
        return _plain(part)
    return part.native() if hasattr(part, "native") else packed_matrix(part)


def stacked_handle(gate_up_E2FD: Tensor, down_EDF: Tensor) -> Any:
    """What `experts` multiplies by, of stacked plain experts."""
    E, D, F = down_EDF.shape
    assert gate_up_E2FD.shape == (E, 2 * F, D) and gate_up_E2FD.is_contiguous() and down_EDF.is_contiguous()
    handle = state().module.Experts()
    handle.stacked(
        TYPES[gate_up_E2FD.dtype], gate_up_E2FD.data_ptr(), TYPES[down_EDF.dtype], down_EDF.data_ptr(), E, D, F
    )
    return handle


def decoder_handle(layers: Sequence[tuple[Any, ...]]) -> Any:
    """What `decode` runs: of each layer qkv and o (`matrix_handle`), two norms' weights, epsilon, router, experts.

    `router` has `weight` [E, D] float32, `top_k` and `renormalise`; `experts` is a handle and their width.
    """
    handle = state().module.Decoder()
    for qkv, o, attention_norm_D, moe_norm_D, eps, router, (expert, width) in layers:
        assert attention_norm_D.dtype == moe_norm_D.dtype and router.weight.dtype == torch.float32
        assert all(t.is_contiguous() for t in (attention_norm_D, moe_norm_D, router.weight))
        handle.append(
            qkv, o, attention_norm_D.data_ptr(), moe_norm_D.data_ptr(), TYPES[moe_norm_D.dtype], eps,
            router.weight.data_ptr(), len(router.weight), router.top_k, router.renormalise, expert, width,
        )  # fmt: skip
    return handle
