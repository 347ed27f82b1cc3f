"""A single row on a CPU: decoding one sequence, where a step is a thousand small calls and one read of the weights.

The same results as `reference`, in fewer calls. In bfloat16, torch's own matrix-vector product reads weights at memory
speed (39 GB/s where oneDNN's matmul reached 20, 26 against 15 for small ones), so oneDNN is off while one row passes.
That switch is torch's and belongs to the process: another thread's product may run slower meanwhile, never differently.
"""

import threading
from contextlib import AbstractContextManager

import torch
from torch import Tensor

__all__ = ["native_products", "rms_norm"]


class _NativeProducts:
    """Several threads may be inside at once: the first to enter turns oneDNN off, the last to leave restores it."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._before = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)
            self._n_inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                torch._C._set_mkldnn_enabled(self._before)


_native_products = _NativeProducts()


def native_products() -> AbstractContextManager[None]:
    """Within it torch multiplies by its own kernels, not oneDNN's."""
    return _native_products


def rms_norm(x_1D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`, for inference."""
    x = x_1D.float()
    row_D = x[0]
    factor: float = (torch.dot(row_D, row_D).item() / len(row_D) + eps) ** -0.5
    return (x * factor).to(weight_D.dtype).mul_(weight_D)
