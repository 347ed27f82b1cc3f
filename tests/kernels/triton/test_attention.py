"""Attention over pages in Triton against the plan that torch attends by, in float64 where the numbers are short."""

import pytest
import torch

from coterie.engine.plan import Plan
from coterie.kernels import reference, triton_decode_attention, triton_prompt_attention
from coterie.kernels.pages import PAGE, Pages
from coterie.kernels.triton_attention import Batch, attention
from coterie.kernels.triton_decode_attention import n_splits_of
from coterie.model.attention import attend_segments

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # NumPy's, of a maximum

Sequences = list[tuple[int, int, int]]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
KEPT = {torch.float32: [torch.float32], torch.bfloat16: [torch.bfloat16, torch.int8], torch.float16: [torch.float16]}
CASES = [  # H, G, P; the window; types of rows and of the cache
    ((4, 2, 32), None, torch.float32, torch.float32),
    ((3, 3, 16), 5, torch.float32, torch.float32),
    ((20, 1, 24), 70, torch.float16, torch.int8),
    ((6, 2, 48), 70, torch.bfloat16, torch.bfloat16),
    ((4, 2, 32), None, torch.bfloat16, torch.int8),
    ((4, 2, 32), 1, torch.float16, torch.float16),
    ((4, 2, 32), None, torch.float16, torch.bfloat16),
]


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
    tolerance = max(TOLERANCE[dtype], TOLERANCE.get(case.store.dtype, 0))
    if torch.bfloat16 in (dtype, case.store.dtype) and not case.qkv.is_cuda:
        tolerance *= 2  # the interpreter cuts bits off instead of rounding
    (got, store), (expected, kept) = case.run(batch), case.expected()
    assert got.shape == expected.shape and got.dtype == dtype
    assert error(got, expected) < tolerance * (1 if store.dtype != torch.int8 else 4)
    assert torch.equal(store.k[0].nan_to_num(3), case.store.k[0].nan_to_num(3))  # the other layer is as it was
    n_changed = 0
    for ours, theirs, before in ((store.k[1], kept.k[1], case.store.k[1]), (store.v[1], kept.v[1], case.store.v[1])):
        changed = (before.double().nan_to_num(-7) != ours.double().nan_to_num(-7)).any(-1)
        n_changed += int(changed.sum())
        if store.dtype == torch.int8:
            assert int((ours.int() - theirs.int()).abs().max()) <= (1 if dtype == torch.float32 else 3)
        else:
            assert error(ours.nan_to_num(), theirs.nan_to_num()) < tolerance
    assert n_changed == 2 * case.G * sum(n for _, _, n in case.sequences)
    for ours, theirs in ((store.k_scales, kept.k_scales), (store.v_scales, kept.v_scales)):
        if ours:
            assert error(ours[1].nan_to_num(), theirs[1].nan_to_num()) < tolerance
    return got


@pytest.fixture(params=[(dtype, kept) for dtype, all_kept in KEPT.items() for kept in all_kept], ids=str)
def types(request: pytest.FixtureRequest) -> tuple[torch.dtype, torch.dtype]:
    value: tuple[torch.dtype, torch.dtype] = request.param
    return value


SINGLES: Sequences = [(2, 0, 1), (0, 200, 1), (1, 63, 1), (3, 64, 1)]
MIXED: Sequences = [(1, 30, 40), (0, 90, 1), (3, 100, 3), (2, 63, 2)]


@pytest.mark.parametrize(("shape", "window", "dtype", "kept"), CASES)
@pytest.mark.parametrize("sequences", [SINGLES, MIXED], ids=["singles", "mixed"])
def test_passes(
    sequences: Sequences,
    shape: tuple[int, int, int],
    window: int | None,
    dtype: torch.dtype,
    kept: torch.dtype,
    device: torch.device,
) -> None:
    """Sequences of one new row, and those beside prompts."""
    check(Case(sequences, shape, dtype, kept, device, window))


@pytest.mark.parametrize(("first", "window"), [(0, None), (37, 75)])
def test_a_prompt_of_many_tiles(
    first: int, window: int | None, types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    check(Case([(0, first, 110)], (2, 1, 16), *types, device, window))


@pytest.mark.parametrize(("n_splits", "window"), [(1, None), (3, 200), (20, None)])
def test_stretches_are_merged(
    n_splits: int, window: int | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_decode_attention, "n_splits_of", lambda *_: n_splits)
    case = Case([(0, 600, 1), (1, 5, 1), (2, 320, 1)], (2, 1, 16), torch.float32, torch.float32, device, window)
    batch = Batch.of(case.tables, case.sequences, device)
    first = check(case, batch)
    assert int(batch.arrivals(1).abs().max()) == 0
    assert torch.equal(check(case, batch), first)  # whoever comes last


@pytest.mark.parametrize(("n_splits", "window"), [(2, 290), (5, None)])
def test_stretches_of_few_rows_are_merged(
    n_splits: int, window: int | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As guesses are checked."""
    monkeypatch.setattr(triton_prompt_attention, "n_splits_of", lambda *_: n_splits)
    case = Case([(1, 1100, 5), (0, 20, 2)], (4, 2, 16), torch.bfloat16, torch.bfloat16, device, window)
    assert torch.equal(check(case), check(case))


def test_how_many_stretches() -> None:
    """Enough for 4 programs a processor, none shorter than two pages of the table."""
    assert n_splits_of(8, 512, 132) == 64
    assert n_splits_of(8, 64, 132) == 32
    assert n_splits_of(64 * 8, 64, 132) == 2
    assert n_splits_of(256 * 8, 64, 132) == 1
    assert n_splits_of(1, 1, 132) == 1
    assert triton_prompt_attention.n_splits_of(8, 512, 4 * 132) == 64
    assert triton_prompt_attention.n_splits_of(8, 32, 4 * 132) == 4
    assert triton_prompt_attention.n_splits_of(8, 7, 4 * 132) == 1
    assert triton_prompt_attention.n_splits_of(128, 512, 132) == 1


def test_a_batch_that_is_filled_again(device: torch.device) -> None:
    """As graphs do it: the same memory, rows that repeat a sequence, rows that have none."""
    case = Case(SINGLES, (4, 2, 16), torch.float32, torch.float32, device)
    batch = Batch.empty(7, 9, device)
    addresses = [t.data_ptr() for t in (batch.tables, batch.start_B, batch.first_B, batch.count_B)]
    for sequences in ([(1, 3, 1)], SINGLES, [*SINGLES, SINGLES[0], SINGLES[0]], [SINGLES[1]]):
        batch.fill(case.tables, sequences)
        assert batch.is_decode and batch.n_single == batch.n_rows == 7
    assert addresses == [t.data_ptr() for t in (batch.tables, batch.start_B, batch.first_B, batch.count_B)]
    alone = case.run(Batch.of(case.tables, SINGLES, device))[0]
    for sequences, n in ((SINGLES, 4), ([*SINGLES, SINGLES[0], SINGLES[0]], 6)):
        batch.fill(case.tables, sequences)
        rows = [*range(4), 0, 0, 0]
        store = case.copy_of_store(torch.float32)
        rotary = (case.rotary[0][rows], case.rotary[1][rows])
        got = attention(case.qkv[rows], rotary, store, 1, batch, None)
        assert error(got[:4], alone) < 1e-6
        assert torch.equal(got[4:n], got[[0] * (n - 4)]) and not got[n:].any()


def test_the_worked_example_of_a_batch(device: torch.device) -> None:
    tables = torch.tensor([[4, 9, 1], [7, 7, 7], [5, 0, 1]], dtype=torch.int32)
    batch = Batch.of(tables, [(2, 7, 3), (1, 0, 0), (0, 64, 1)], device)
    assert batch.start_B.tolist() == [3, 0] and batch.first_B.tolist() == [64, 7] and batch.count_B.tolist() == [1, 3]
    assert batch.tables[:, :2].tolist() == [[4, 9], [5, 0]]
    assert (batch.n_rows, batch.n_single, batch.longest, batch.is_decode) == (4, 1, 3, False)


def test_a_sequence_that_is_no_number_harms_no_other(device: torch.device) -> None:
    case = Case(MIXED, (2, 1, 16), torch.float32, torch.float32, device)
    good, _ = case.run()
    case.qkv[40] = torch.nan  # the single row
    got, _ = case.run()
    assert got[40].isnan().all() and torch.equal(got[:40], good[:40]) and torch.equal(got[41:], good[41:])
    case.qkv[41, 2] = torch.inf  # a key of the next sequence's first row, which its other rows see
    got, _ = case.run()
    assert torch.equal(got[:40], good[:40]) and torch.equal(got[44:], good[44:])


def test_int8_keeps_what_the_cache_keeps(device: torch.device) -> None:
    """Values are not turned, so they are the same to the bit, ties and numbers that are none included."""
    case = Case(MIXED, (4, 2, 16), torch.float32, torch.int8, device)
    case.qkv[:, 6:] = torch.randint(-8, 9, case.qkv[:, 6:].shape, device=device) / 8
    case.qkv[3, 6, 2], case.qkv[4, 7, 3], case.qkv[40, 6, 1] = torch.nan, torch.inf, -torch.inf
    case.qkv[5, 6] = 0
    _, store = case.run()
    _, expected = case.expected()
    assert torch.equal(store.v[1], expected.v[1])
    ours, theirs = store.v_scales[1], expected.v_scales[1]
    assert torch.equal(ours.isfinite(), theirs.isfinite()) and error(ours.nan_to_num(), theirs.nan_to_num()) < 1e-6


def test_pages_out_of_the_window_are_not_read(types: tuple[torch.dtype, torch.dtype], device: torch.device) -> None:
    """The cache has given them back: -1 in the table."""
    case = Case([(0, 300, 1), (1, 250, 20)], (4, 2, 16), *types, device, 100)
    expected = case.run()[0]
    case.tables[0, :3], case.tables[1, :2] = -1, -1  # positions up to 191 and 127
    assert torch.equal(case.run()[0], expected)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.int8, torch.float32])
def test_large_shapes(kept: torch.dtype, device: torch.device, is_card: bool) -> None:
    if not is_card:
        pytest.skip("for a card")
    dtype = torch.float32 if kept == torch.float32 else torch.bfloat16
    for shape in ((32, 8, 128), (8, 1, 256), (12, 4, 80)):
        check(Case([(slot, 37 * slot + 900, 1) for slot in range(40)], shape, dtype, kept, device))
        check(Case([(0, 30000, 1)], shape, dtype, kept, device))
        check(Case([(0, 9000, 5)], shape, dtype, kept, device))
        check(Case([(0, 9000, 130), (1, 200, 1)], shape, dtype, kept, device, 5000))
        check(Case([(0, 0, 2000), (1, 1000, 513), (2, 700, 1), (3, 900, 6)], shape, dtype, kept, device))
        check(Case([(0, 0, 2000), (1, 1000, 513), (2, 700, 1), (3, 900, 6)], shape, dtype, kept, device, 600))


def test_a_graph_gives_the_same(device: torch.device, is_card: bool) -> None:
    if not is_card:
        pytest.skip("for a card")
    case = Case([(slot, 100 * slot + 50, 1) for slot in range(8)], (32, 8, 128), torch.bfloat16, torch.bfloat16, device)
    batch, store = Batch.empty(8, 32, device), case.copy_of_store(torch.bfloat16)
    batch.fill(case.tables, case.sequences)
    expected = attention(case.qkv, case.rotary, store, 1, batch, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = attention(case.qkv, case.rotary, store, 1, batch, None)
    for _ in range(3):
        got.fill_(torch.nan)
        graph.replay()
        assert torch.equal(got, expected)
    batch.fill(case.tables, case.sequences[:5])
    graph.replay()
    assert torch.equal(got[:5], expected[:5]) and not got[5:].any()
