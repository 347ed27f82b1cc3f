"""Attention over the cache in the native kernels, on every instruction set, against every key at its own position.

Shapes: T new rows of all sequences, H query heads, G key/value heads, P head width, C positions of a sequence.
"""

import math

import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, reference
from coterie.kernels.pages import PAGE, Pages

TYPES = (torch.float32, torch.float16, torch.bfloat16)
CACHES = (*TYPES, torch.int8)


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


class Twin:
    """Calls the kernel for several slots, whose pages lie in any order, and checks every output and the cache."""

    def __init__(self, H: int, G: int, P: int, window: int | None, n_positions: int, n_slots: int, cache: torch.dtype):
        self.H, self.G, self.P, self.window = H, G, P, window
        self.generator = torch.Generator().manual_seed(H * 1000 + P)
        self.pages = Pages(1, G, P, cache, torch.device("cpu"))
        n = -(-n_positions // PAGE)
        self.pages.grow(n_slots * n)
        self.tables = torch.randperm(n_slots * n, generator=self.generator).int().view(n_slots, n)
        # all that each sequence was fed: what the cache should know
        self.k, self.v = ([torch.zeros(0, G, P, dtype=self.kept)] * n_slots for _ in range(2))

    def rows(self, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(n, self.H + 2 * self.G, self.P, generator=self.generator).to(dtype)

    def feed(self, work: list[tuple[int, int]], dtype: torch.dtype = torch.float32, *, exact: bool = False) -> Tensor:
        """New rows of (slot, count) pairs."""
        qkv = self.rows(sum(n for _, n in work), dtype)
        sequences = [(slot, len(self.k[slot]), n) for slot, n in work]
        turns = rotary(torch.cat([torch.arange(f, f + n) for _, f, n in sequences]), self.P, exact=exact)
        out = self.call(qkv, turns, sequences)
        turned = reference.rotate(qkv.float(), *turns)
        row, limit = 0, {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        for slot, first, n in sequences:
            k = turned[row : row + n, self.H : self.H + self.G].to(self.kept)
            v = qkv[row : row + n, self.H + self.G :].to(self.kept)
            if self.pages.has_scales:
                k, v = self.read(slot, first, first + n)
            self.k[slot], self.v[slot] = torch.cat((self.k[slot], k)), torch.cat((self.v[slot], v))
            expected = self.attend(turned[row : row + n, : self.H].double(), slot, first).flatten(1)
            error = (out[row : row + n].double() - expected).abs().amax(1) / expected.abs().amax(1)
            assert error.max() <= limit, f"slot {slot}, position {first + int(error.argmax())}: {error.max():.1e}"
            row += n
            self.check_cache(slot)
        return out

    @property
    def kept(self) -> torch.dtype:
        return torch.float32 if self.pages.has_scales else self.pages.dtype

    def call(self, qkv: Tensor, turns: tuple[Tensor, Tensor], sequences: list[tuple[int, int, int]]) -> Tensor:
        at = torch.tensor(sequences, dtype=torch.int64)
        return cpu.attention(qkv, turns, self.pages, 0, self.tables, at, self.window)

    def read(self, slot: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(first, stop)
        return self.pages.read(0, self.tables[slot].long()[at // PAGE] * PAGE + at % PAGE)

    def attend(self, q_SHP: Tensor, slot: int, first: int) -> Tensor:
        k, v = (t[slot].double().repeat_interleave(self.H // self.G, 1) for t in (self.k, self.v))
        distance = torch.arange(first, first + len(q_SHP))[:, None] - torch.arange(len(k))
        visible = (distance >= 0) & (distance < (self.window or len(k)))
        scores = torch.einsum("shp,chp->shc", q_SHP, k) / math.sqrt(self.P)
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
        return torch.einsum("shc,chp->shp", weights, v)

    def check_cache(self, slot: int) -> None:
        k, v = self.read(slot, 0, len(self.k[slot]))
        torch.testing.assert_close(k, self.k[slot])
        assert torch.equal(v, self.v[slot])


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


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("window", [1, 3, 16, 70])
def test_a_window(isa: str, cache: torch.dtype, window: int) -> None:
    """Chunks within it, longer than it, and single rows between them."""
    twin = Twin(4, 2, 8, window, 500, 2, cache)
    for n in (2, 1, window, window + 1, 3 * window + 2, 1, 1, 5):
        twin.feed([(1, n)], exact=True)
    twin.feed([(0, 2 * window + 1), (1, 1)], exact=True)
    twin.feed([(0, 1), (1, window)], exact=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_eight_bits_are_those_of_the_reference(isa: str, dtype: torch.dtype) -> None:
    """The numbers and the scales that the kernel keeps are those that torch would; zeros, infinities and NaN too."""
    twin = Twin(4, 2, 20, None, 64, 1, torch.int8)
    qkv, turns = twin.rows(9, dtype), rotary(torch.arange(9), 20, exact=True)
    qkv[1, 4:] = 0
    qkv[2, 6, 3], qkv[3, 6, 3], qkv[4, 6:] = torch.inf, torch.nan, 1e-35
    twin.call(qkv, turns, [(0, 0, 9)])
    expected = Pages(1, 2, 20, torch.int8, torch.device("cpu"))
    expected.grow(1)
    turned = reference.rotate(qkv.float(), *turns)
    expected.write(0, torch.arange(9), turned[:, 4:6], qkv[:, 6:])
    for found, wanted in zip((twin.pages.k, twin.pages.v), (expected.k, expected.v), strict=True):
        assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(twin.pages.k_scales[0], expected.k_scales[0], rtol=0, atol=0)
    torch.testing.assert_close(twin.pages.v_scales[0], expected.v_scales[0], rtol=0, atol=0, equal_nan=True)
    error = (twin.read(0, 5, 9)[1] - qkv[5:, 6:].float()).abs().amax(-1)
    assert (error <= qkv[5:, 6:].float().abs().amax(-1) / 253).all()


@pytest.mark.parametrize("window", [None, 9, 80])
@pytest.mark.parametrize("cache", CACHES)
def test_bits_do_not_depend_on_how_rows_come(isa: str, window: int | None, cache: torch.dtype) -> None:
    """One call, chunks, single rows, others beside them, other pages: the same outputs and the same cache."""
    n, slots = 150, 3
    twin = Twin(4, 2, 16, window, n, slots, cache)
    qkv, turns = twin.rows(n), rotary(torch.arange(n), 16, exact=False)
    whole = twin.call(qkv, turns, [(0, 0, n)])
    kept = [t.clone() for t in twin.read(0, 0, n)]
    for size in (1, 7, 64, 100):
        twin.tables = twin.tables.flatten()[torch.randperm(twin.tables.numel())].view(slots, -1)
        for first in range(0, n, size):
            part, others = qkv[first : first + size], twin.rows(6)
            angles = tuple(torch.cat((t[:6], t[first : first + size])) for t in turns)
            at = [(0, 0, 2), (2, 0, 4), (1, first, len(part))]
            out = twin.call(torch.cat((others, part)), angles, at)
            assert torch.equal(out[6:], whole[first : first + size]), (size, first)
        assert all(map(torch.equal, twin.read(1, 0, n), kept))


@pytest.mark.parametrize("cache", [torch.float32, torch.int8])
def test_two_sequences_read_the_same_page(isa: str, cache: torch.dtype) -> None:
    twin = Twin(4, 2, 16, None, 128, 2, cache)
    qkv, turns = twin.rows(70), rotary(torch.arange(70), 16, exact=False)
    twin.call(qkv[:64], tuple(t[:64] for t in turns), [(0, 0, 64)])
    twin.tables[1, 0] = twin.tables[0, 0]
    rest = torch.cat((qkv[64:], qkv[64:]))
    out = twin.call(rest, tuple(torch.cat((t[64:], t[64:])) for t in turns), [(0, 64, 6), (1, 64, 6)])
    assert torch.equal(out[:6], out[6:])


def test_large_scores(isa: str) -> None:
    """One key takes all the weight, another none: exp neither overflows nor gives a number that is none."""
    twin = Twin(2, 1, 4, None, 100, 1, torch.float32)
    qkv, turns = 1e4 * twin.rows(90), rotary(torch.arange(90), 4, exact=False)
    out = twin.call(qkv, turns, [(0, 0, 90)])
    assert out.isfinite().all() and torch.equal(out[0].view(2, 4), qkv[0, 3].expand(2, 4))
