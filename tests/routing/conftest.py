"""Routers of every kind on a small scale: 12 tokens of width 6 and 4 experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from coterie.router_config import RouterConfig
from coterie.routing import Rows, build_router

N_EXPERTS, WIDTH = 4, 6


@pytest.fixture
def make_router() -> Callable[..., nn.Module]:
    """`make_router(kind, top_k=2, dtype=..., **options)`: random weights; top_k is the kind's own where it has one."""

    def make(kind: str, *, top_k: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
        config = RouterConfig(kind=kind, **options)
        generator = torch.Generator().manual_seed(1)
        return build_router(
            config, n_experts=N_EXPERTS, width=WIDTH, top_k=config.top_k_for(N_EXPERTS, top_k), renormalise=True,
            new_tensor=lambda *shape: torch.randn(shape, generator=generator, dtype=dtype),
        )  # fmt: skip

    return make


@pytest.fixture
def x_TD() -> torch.Tensor:
    return torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.fixture
def rows_for() -> Callable[..., Rows]:
    """`rows_for(x)`: two sequences, ids 0..T-1, and a generator that draws the same numbers each time."""

    def rows(x_TD: torch.Tensor, **changes: Any) -> Rows:
        T = len(x_TD)
        sides = {
            "token_ids_T": torch.arange(T),
            "sequence_T": torch.arange(T) * 2 // T,
            "generator": torch.Generator().manual_seed(3),
        }
        return Rows(**{**sides, **changes})

    return rows
