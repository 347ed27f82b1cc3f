"""Attention over pages in Triton against the plan that torch attends by, in float64 where the numbers are short."""

from typing import Any

import pytest
import torch
import triton.language as tl

from coterie.engine.plan import Plan
from coterie.kernels import reference
from coterie.kernels.pages import PAGE, Pages
from coterie.kernels.triton_attention import Batch, attention
from coterie.kernels.triton_decode_attention import n_splits_of
from coterie.model.attention import attend_segments

Sequences = list[tuple[int, int, int]]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
KEPT = {torch.float32: [torch.float32], torch.bfloat16: [torch.bfloat16, torch.int8], torch.float16: [torch.float16]}
SHAPES = [(8, 2, 32), (6, 2, 48), (3, 3, 16), (20, 1, 24)]  # H, G, P


@pytest.fixture(autouse=True)
def _products(is_card: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter multiplies the bits of bfloat16, which it has as integers."""
    if is_card:
        return
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, n: Any) -> Any:
        wide = [interpreter._convert_float(x.data, tl.bfloat16, tl.float32, None).view("float32") for x in (a, b)]
        return interpreter.TensorHandle(wide[0] @ wide[1] + d.data, d.dtype.scalar)

    original = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, *rest: (create_dot if a.dtype.scalar == tl.bfloat16 else original)(self, a, *rest),
    )


class Case:
    """A cache of some slots whose pages lie in any order, filled by torch up to the first position of each."""

    def __init__(
        self,
        sequences: Sequences,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        kept: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ):
        torch.manual_seed(sum(first + 7 * n for _, first, n in sequences) + sum(shape))
        self.sequences, self.window, self.device = sequences, window, device
        self.H, self.G, self.P = shape
        n_slots = max(slot for slot, _, _ in sequences) + 1
        longest = max(first + n for _, first, n in sequences)
        n_pages = -(-longest // PAGE)
        self.tables = (torch.randperm(n_slots * n_pages + 1)[: n_slots * n_pages]).int().view(n_slots, n_pages)
        self.store = Pages(2, self.G, self.P, kept, device)
        self.store.grow(n_slots * n_pages + 1)
        for scales in (*self.store.k_scales, *self.store.v_scales):
            scales.fill_(torch.nan)
        for store in (*self.store.k, *self.store.v):  # what nobody wrote is no number
            store.fill_(99 if kept == torch.int8 else torch.nan)
        old = [(slot, 0, first) for slot, first, _ in sequences if first]
        if old:
            plan = Plan(self.store, self.tables, old, None)
            rows = torch.cat([plan._rows(*sequence) for sequence in old])
            k, v = torch.randn(2, len(rows), self.G, self.P, device=device).to(dtype)
            self.store.write(1, rows, k, v)
        T = sum(n for _, _, n in sequences)
        self.qkv = torch.randn(T, self.H + 2 * self.G, self.P, device=device).to(dtype)
        at = torch.tensor([p for _, first, n in sequences for p in range(first, first + n)], device=device)
        self.rotary = reference.rotary_tables(at, self.P, 1e4, torch.float32)

    def copy_of_store(self, dtype: torch.dtype) -> Pages:
        copy = Pages(2, self.G, self.P, dtype, self.device)
        copy.grow(self.store.n_pages)
        for layer in range(2):
            copy.k[layer].copy_(self.store.k[layer])
            copy.v[layer].copy_(self.store.v[layer])
            for ours, theirs in ((copy.k_scales, self.store.k_scales), (copy.v_scales, self.store.v_scales)):
                if ours and theirs:
                    ours[layer].copy_(theirs[layer])
        return copy

    def run(self, batch: Batch | None = None) -> tuple[torch.Tensor, Pages]:
        """What the kernels give, and the store after them."""
        store = self.copy_of_store(self.store.dtype)
        batch = batch or Batch.of(self.tables, self.sequences, self.device)
        torch.full((4096,), torch.nan, device=self.device)  # freed: what comes out was written
        return attention(self.qkv, self.rotary, store, 1, batch, self.window), store

    def expected(self, kept: torch.dtype | None = None) -> tuple[torch.Tensor, Pages]:
        """In float64 from what is kept of the old keys; the new ones are kept in `kept`, or not rounded."""
        wide = torch.float64 if self.store.dtype != torch.int8 else torch.int8
        store = self.copy_of_store(kept or wide)
        exact = self.qkv if kept == torch.int8 or wide == torch.int8 else self.qkv.double()
        plan = Plan(store, self.tables, self.sequences, self.window)
        if wide == torch.int8:
            exact = exact.float()
        return attend_segments(plan, 1, exact, self.rotary, self.G), store


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def check(case: Case, batch: Batch | None = None) -> torch.Tensor:
    dtype = case.qkv.dtype
    (got, store), (expected, kept) = case.run(batch), case.expected()
    assert got.shape == expected.shape and got.dtype == dtype
    assert error(got, expected) < TOLERANCE[dtype] * (1 if store.dtype != torch.int8 else 4)
    assert torch.equal(store.k[0].nan_to_num(3), case.store.k[0].nan_to_num(3))  # the other layer is as it was
    n_changed = 0
    for ours, theirs, before in ((store.k[1], kept.k[1], case.store.k[1]), (store.v[1], kept.v[1], case.store.v[1])):
        changed = (before.double().nan_to_num(-7) != ours.double().nan_to_num(-7)).any(-1)
        n_changed += int(changed.sum())
        if store.dtype == torch.int8:
            assert int((ours.int() - theirs.int()).abs().max()) <= (1 if dtype == torch.float32 else 3)
        else:
            assert error(ours.nan_to_num(), theirs.nan_to_num()) < TOLERANCE[dtype]
    assert n_changed == 2 * case.G * sum(n for _, _, n in case.sequences)
    for ours, theirs in ((store.k_scales, kept.k_scales), (store.v_scales, kept.v_scales)):
        if ours:
            assert error(ours[1].nan_to_num(), theirs[1].nan_to_num()) < TOLERANCE[dtype]
    return got


@pytest.fixture(params=[(dtype, kept) for dtype, all_kept in KEPT.items() for kept in all_kept], ids=str)
def types(request: pytest.FixtureRequest) -> tuple[torch.dtype, torch.dtype]:
    value: tuple[torch.dtype, torch.dtype] = request.param
    return value


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 70])
def test_one_row_a_sequence(
    shape: tuple[int, int, int], window: int | None, types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    check(Case([(2, 0, 1), (0, 200, 1), (1, 63, 1), (3, 64, 1)], shape, *types, device, window))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 5, 70])
def test_prompts_and_single_rows_side_by_side(
    shape: tuple[int, int, int], window: int | None, types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    check(Case([(1, 0, 70), (0, 90, 1), (3, 100, 3), (2, 63, 2)], shape, *types, device, window))
