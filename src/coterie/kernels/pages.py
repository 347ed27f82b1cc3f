"""Keys and values of all layers in pages of 64 positions, and how torch reads and writes them.

The native kernels take `addresses` and do both themselves (`cpu.attention`); `write` and `read` say what.
In int8 each key and value of a head has a float32 scale: a number x is kept as round(x · 127 / m), half to even, with
scale m / 127, where m is the largest magnitude of that key. A key's bits depend on nothing else, so a copy is exact.
Example: (1, -2, 0.5) is kept as (64, -127, 32) with scale 2/127 and read as (1.008, -2, 0.504).

Shapes: N rows of pages (row = page · 64 + place), G key/value heads, P head width.
"""

import torch
from torch import Tensor

from coterie.kernels import reference

__all__ = ["PAGE", "Pages"]

PAGE = 64  # positions; the block of keys of native attention


class Pages:
    """`k`, `v`: per layer [pages, 64, G, P]; `k_scales`, `v_scales`: per layer [pages, 64, G] in int8, else empty."""

    def __init__(self, n_layers: int, G: int, P: int, dtype: torch.dtype, device: torch.device):
        self.n_layers, self.dtype, self.device = n_layers, dtype, device
        self._row = G, P
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.k_scales: list[Tensor] = []
        self.v_scales: list[Tensor] = []
        self.addresses: list[int] = []  # of each layer: k, v and their scales, or 0
        self.n_pages = 0

    @property
    def has_scales(self) -> bool:
        return self.dtype == torch.int8

    @torch.inference_mode(False)
    def grow(self, n_pages: int) -> None:
        """What is there stays. New pages are zeros."""
        G, P = self._row
        self._grow(self.k, (n_pages, PAGE, G, P), self.dtype)
        self._grow(self.v, (n_pages, PAGE, G, P), self.dtype)
        if self.has_scales:
            self._grow(self.k_scales, (n_pages, PAGE, G), torch.float32)
            self._grow(self.v_scales, (n_pages, PAGE, G), torch.float32)
        self.n_pages = n_pages
        scales = (self.k_scales, self.v_scales) if self.has_scales else ()
        self.addresses = [
            stores[layer].data_ptr() if stores else 0
            for layer in range(self.n_layers)
            for stores in (self.k, self.v, *(scales or ([], [])))
        ]

    def _grow(self, stores: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        for layer in range(self.n_layers):
            new = torch.zeros(shape, dtype=dtype, device=self.device)
            if len(stores) == layer:
                stores.append(new)
            else:
                new[: self.n_pages] = stores[layer]
                stores[layer] = new  # the old one goes before the next is made

    @torch.no_grad()
    def copy(self, source: int, target: int, n: int) -> None:
        """The first n places of one page into another, in all layers."""
        for store in (*self.k, *self.v, *self.k_scales, *self.v_scales):
            store[target, :n] = store[source, :n]

    def write(self, layer: int, rows_N: Tensor, k_NGP: Tensor, v_NGP: Tensor) -> None:
        self._write(self.k, self.k_scales, layer, rows_N, k_NGP)
        self._write(self.v, self.v_scales, layer, rows_N, v_NGP)

    def _write(self, stores: list[Tensor], scales: list[Tensor], layer: int, rows_N: Tensor, x_NGP: Tensor) -> None:
        if self.has_scales:
            x_NGP, scale_NG = _quantised(x_NGP)
            scales[layer].flatten(0, 1).index_copy_(0, rows_N, scale_NG)
        stores[layer].flatten(0, 1).index_copy_(0, rows_N, x_NGP.to(self.dtype))

    def read(self, layer: int, rows: "Tensor | slice") -> tuple[Tensor, Tensor]:
        """Keys and values of these rows: a slice is a view where nothing has scales. [..., G, P], as `rows` are."""
        return self._read(self.k, self.k_scales, layer, rows), self._read(self.v, self.v_scales, layer, rows)

    def _read(self, stores: list[Tensor], scales: list[Tensor], layer: int, rows: "Tensor | slice") -> Tensor:
        x = stores[layer].flatten(0, 1)[rows]
        return x.float() * scales[layer].flatten(0, 1)[rows].unsqueeze(-1) if self.has_scales else x


def _quantised(x_NGP: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers and float32 scales [N, G]; see above. A key that is not all numbers has a scale that is none."""
    x_NGP = reference.wide(x_NGP).float()
    largest_NG = x_NGP.abs().amax(-1)
    is_usable_NG = (largest_NG >= 1e-30) & largest_NG.isfinite()
    factor_NG = torch.where(is_usable_NG, 127 / largest_NG, 0)
    return (x_NGP * factor_NG.unsqueeze(-1)).nan_to_num(0).round().to(torch.int8), largest_NG / 127
