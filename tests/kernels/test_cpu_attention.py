"""Attention over the cache in the native kernels, on every instruction set, against every key at its own position.

Shapes: T new rows of all sequences, H query heads, G key/value heads, P head width, C positions of a sequence.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, reference

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def rotary(positions_T: Tensor, P: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    """Angles as in a model; `exact`: quarter turns, which round nothing, so that narrow caches can be compared too."""
    cos, sin = reference.rotary_tables(positions_T, P, 100.0, torch.float32)
    if not exact:
        return cos, sin
    quarter = (positions_T[:, None, None] + torch.arange(P // 2).repeat(2)) % 4
    turns = torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]])
    sign = torch.ones(P)
    sign[: P // 2] = -1
    return turns[0][quarter], turns[1][quarter] * sign


@dataclass
class History:
    """All a sequence was fed: what the cache should know, and no ring forgets."""

    k: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)


class Twin:
    """Calls the kernel for several slots and checks every output and every place of the cache."""

    def __init__(self, H: int, G: int, P: int, window: int | None, n_places: int, n_slots: int, cache: torch.dtype):
        self.H, self.G, self.P, self.window, self.n_places = H, G, P, window, n_places
        self.k, self.v = (torch.zeros(n_slots, n_places, G, P, dtype=cache) for _ in range(2))
        self.histories = [History() for _ in range(n_slots)]
        self.generator = torch.Generator().manual_seed(H * 1000 + P)

    def rows(self, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(n, self.H + 2 * self.G, self.P, generator=self.generator).to(dtype)

    def feed(self, work: list[tuple[int, int]], dtype: torch.dtype = torch.float32, *, exact: bool = False) -> Tensor:
        """New rows of (slot, count) pairs."""
        qkv = self.rows(sum(n for _, n in work), dtype)
        sequences = [(slot, len(self.histories[slot].k), n) for slot, n in work]
        turns = rotary(torch.cat([torch.arange(f, f + n) for _, f, n in sequences]), self.P, exact=exact)
        out = self.call(qkv, turns, sequences)
        turned = reference.rotate(qkv.float(), *turns)
        row, limit = 0, {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        for slot, first, n in sequences:
            history = self.histories[slot]
            history.k += list(turned[row : row + n, self.H : self.H + self.G].to(self.k.dtype))
            history.v += list(qkv[row : row + n, self.H + self.G :].to(self.v.dtype))
            for i in range(n):
                expected = self.attend(turned[row + i, : self.H].double(), history, first + i)
                error = (out[row + i].double() - expected.flatten()).abs().max() / expected.abs().max()
                assert error <= limit, f"slot {slot}, position {first + i}: {error:.1e}"
            row += n
            self.check_cache(slot)
        return out

    def call(self, qkv: Tensor, turns: tuple[Tensor, Tensor], sequences: list[tuple[int, int, int]]) -> Tensor:
        return cpu.attention(qkv, turns, self.k, self.v, torch.tensor(sequences, dtype=torch.int64), self.window)

    def attend(self, q_HP: Tensor, history: History, position: int) -> Tensor:
        first = 0 if self.window is None else max(0, position - self.window + 1)
        k, v = (torch.stack(t[first : position + 1]).double() for t in (history.k, history.v))
        k, v = (t.repeat_interleave(self.H // self.G, 1) for t in (k, v))
        weights = (torch.einsum("hp,chp->hc", q_HP, k) / math.sqrt(self.P)).softmax(-1)
        return torch.einsum("hc,chp->hp", weights, v)

    def check_cache(self, slot: int) -> None:
        """Position p at place p, or in a ring at p % places, the last ones only."""
        history = self.histories[slot]
        n = len(history.k)
        for position in range(max(0, n - self.n_places), n):
            place = position % self.n_places
            torch.testing.assert_close(self.k[slot, place], history.k[position])
            assert torch.equal(self.v[slot, place], history.v[position])


@pytest.mark.parametrize(("H", "G", "P"), [(4, 4, 8), (4, 2, 16), (6, 1, 64), (8, 2, 36), (32, 8, 2)])
def test_grouped_heads_of_several_sequences(isa: str, H: int, G: int, P: int) -> None:
    """Prompts of different lengths, longer than a block of 64 keys, then a row of each, then a mixture."""
    twin = Twin(H, G, P, None, 150, 3, torch.float32)
    twin.feed([(0, 5), (2, 131), (1, 1)])
    twin.feed([(0, 1), (1, 1), (2, 1)])
    twin.feed([(2, 1), (0, 66)])


@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_types_of_rows_and_of_the_cache(isa: str, dtype: torch.dtype, cache: torch.dtype) -> None:
    twin = Twin(4, 2, 20, None, 80, 2, cache)
    twin.feed([(0, 70), (1, 3)], dtype, exact=True)
    twin.feed([(0, 1), (1, 1)], dtype, exact=True)


@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("window", [1, 3, 16, 70])
def test_a_ring_that_wraps(isa: str, cache: torch.dtype, window: int) -> None:
    """Chunks that end in it, that cross its end, that are longer than it, and single rows between them."""
    twin = Twin(4, 2, 8, window, window, 2, cache)
    for n in (2, 1, window, window + 1, 3 * window + 2, 1, 1, 5):
        twin.feed([(1, n)], exact=True)
    twin.feed([(0, 2 * window + 1), (1, 1)], exact=True)
    twin.feed([(0, 1), (1, window)], exact=True)


def test_a_window_larger_than_the_places_so_far(isa: str) -> None:
    """The cache grows up to the window: before that, no position wraps."""
    twin = Twin(4, 2, 8, 64, 20, 1, torch.float32)
    twin.feed([(0, 13)])
    twin.feed([(0, 1)])
    twin.feed([(0, 6)])


@pytest.mark.parametrize("window", [None, 9, 80])
@pytest.mark.parametrize("cache", TYPES)
def test_bits_do_not_depend_on_how_rows_come(isa: str, window: int | None, cache: torch.dtype) -> None:
    """One call, chunks, single rows, and others beside them: the same outputs and the same cache."""
    n, slots = 150, 3
    twin = Twin(4, 2, 16, window, window or n, slots, cache)
    qkv, turns = twin.rows(n), rotary(torch.arange(n), 16, exact=False)
    whole = twin.call(qkv, turns, [(0, 0, n)])
    k, v = twin.k[0].clone(), twin.v[0].clone()
    for size in (1, 7, 64, 100):
        twin.k.zero_(), twin.v.zero_()
        for first in range(0, n, size):
            part, others = qkv[first : first + size], twin.rows(6)
            angles = tuple(torch.cat((t[:6], t[first : first + size])) for t in turns)
            at = [(0, 0, 2), (2, 0, 4), (1, first, len(part))]
            out = twin.call(torch.cat((others, part)), angles, at)
            assert torch.equal(out[6:], whole[first : first + size]), (size, first)
        assert torch.equal(twin.k[1], k) and torch.equal(twin.v[1], v)


def test_large_scores(isa: str) -> None:
    """One key takes all the weight, another none: exp neither overflows nor gives a number that is none."""
    twin = Twin(2, 1, 4, None, 100, 1, torch.float32)
    qkv, turns = 1e4 * twin.rows(90), rotary(torch.arange(90), 4, exact=False)
    out = twin.call(qkv, turns, [(0, 0, 90)])
    assert out.isfinite().all() and torch.equal(out[0].view(2, 4), qkv[0, 3].expand(2, 4))
