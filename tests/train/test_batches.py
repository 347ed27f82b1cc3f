import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import DataError
from coterie.model import Transformer
from coterie.train.batches import Batch, Batches
from coterie.train.objective import Objective
from coterie.train.recipe import Balance
from coterie.train.tokens import Joined, TokenFile


def files(*lengths: int) -> list[TokenFile]:
    ends = np.cumsum((0, *lengths))
    return [
        TokenFile(f"f{i}", np.arange(a, b, dtype=np.uint32), 1) for i, (a, b) in enumerate(itertools.pairwise(ends))
    ]


def test_every_window_comes_once_before_any_comes_twice() -> None:
    batches = Batches(files(64, 32), [], [(0, 8)], steps=6, tokens=16, bos=999, seed=1)
    windows = [int(t[0]) for step in range(6) for t in batches.batch(step).targets_BS]
    assert len(windows) == 12 == len(set(windows))


@given(
    lengths=st.lists(st.integers(4, 60), min_size=1, max_size=4),
    n_rows=st.integers(1, 5),
    steps=st.integers(1, 30),
    seed=st.integers(0, 2**63),
    with_weights=st.booleans(),
)
def test_each_file_is_gone_through_in_epochs(
    lengths: list[int], n_rows: int, steps: int, seed: int, with_weights: bool
) -> None:
    """Of the rows of one file every run of as many as it has windows holds each window once."""
    length, weights = 4, [float(i + 1) for i in range(len(lengths))] if with_weights else []
    batches = Batches(files(*lengths), weights, [(0, length)], steps, n_rows * length, 0, seed)
    rows = [row for step in range(steps) for row in batches.rows(step)]
    assert len(rows) == steps * n_rows
    for i, n in enumerate(lengths):
        mine = [row["first_token"] // length for row in rows if row["file"] == f"f{i}"]
        epochs = [mine[at : at + n // length] for at in range(0, len(mine), n // length)]
        for epoch in epochs[:-1]:
            assert sorted(epoch) == list(range(n // length))
        assert len(set(epochs[-1])) == len(epochs[-1]) if epochs else True


def test_rows_start_with_bos_and_targets_are_the_next_ids() -> None:
    ids_BS, targets_BS, documents_BS = Batches(files(64), [], [(0, 8)], 4, 16, 999, 0).batch(2)
    assert ids_BS.shape == targets_BS.shape == (2, 8) and documents_BS is None
    assert ids_BS.dtype == targets_BS.dtype == torch.int64
    assert (ids_BS[:, 0] == 999).all() and torch.equal(ids_BS[:, 1:], targets_BS[:, :-1])


def test_phases_keep_the_tokens_of_a_step() -> None:
    batches = Batches(files(256), [], [(0, 8), (3, 32)], 5, 32, 0, 0)
    assert [tuple(batches.batch(s).ids_BS.shape) for s in range(5)] == [(4, 8)] * 3 + [(1, 32)] * 2
    assert [batches.sequence(s) for s in range(5)] == [8] * 3 + [32] * 2


def test_the_order_never_changes() -> None:
    """Runs that were begun with an earlier version go on: these numbers are its own."""
    batches = Batches(files(80, 40, 120), [1.0, 0.5, 2.0], [(0, 8), (2, 16)], 4, 32, 0, 7)
    first = [[row["first_token"] for row in batches.rows(step)] for step in range(4)]
    names = "".join(row["file"][1] for step in range(4) for row in batches.rows(step))
    assert first == [[32, 0, 64, 24], [16, 96, 64, 48], [96, 16], [0, 32]]
    assert names == "222012022000"


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def make(seed: int) -> Batches:
        return Batches(files(64, 64), [1.0, 3.0], [(0, 8)], 50, 16, 0, seed)

    first, again, other = make(5), make(5), make(6)
    again.batch(3)
    assert torch.equal(first.batch(40).targets_BS, again.batch(40).targets_BS)
    assert any(not torch.equal(first.batch(s).targets_BS, other.batch(s).targets_BS) for s in range(5))


def test_shards_are_read_as_one_row() -> None:
    (whole,) = files(640)
    ends = np.arange(7, 641, 7)
    ids, at = Joined([whole.ids[:100], whole.ids[100:101], whole.ids[101:]]), Joined([ends[:5], ends[5:]])
    one, three = (
        Batches([TokenFile("f0", i, 1, e)], [], [(0, 16)], 10, 64, 0, 3, is_masked=True)
        for i, e in ((whole.ids, ends), (ids, at))
    )
    for step in range(10):
        assert all(torch.equal(a, b) for a, b in zip(one.batch(step), three.batch(step), strict=True))


def test_weights_are_shares_of_the_rows() -> None:
    batches = Batches(files(80, 80), [1.0, 3.0], [(0, 8)], 500, 16, 0, 0)
    from_second = sum(int((batches.batch(s).targets_BS[:, 0] >= 80).sum()) for s in range(500))
    assert 0.7 < from_second / 1000 < 0.8


def test_a_file_shorter_than_a_row_is_named() -> None:
    with pytest.raises(DataError, match="f0 has 5 tokens, fewer than one sequence of 8; give it more text or choose"):
        Batches(files(5), [], [(0, 8)], 4, 16, 0, 0)
    Batches(files(5, 8), [0.0, 1.0], [(0, 8)], 4, 16, 0, 0)  # one that is not drawn from may be short
    with pytest.raises(DataError, match="f0 has 5 tokens"):  # also where chance would hardly ever have drawn it
        Batches(files(5, 80_000), [], [(0, 8)], 1, 8, 0, 0)


def test_rows_say_where_the_tokens_of_a_step_come_from() -> None:
    there = files(100, 100)
    batches = Batches(there, [], [(0, 8), (2, 16)], 4, 32, 1, 0)
    for step in range(4):
        rows, targets_BS = batches.rows(step), batches.batch(step).targets_BS
        assert len(rows) == len(targets_BS) and {r["tokens"] for r in rows} == {8 if step < 2 else 16}
        for row, targets in zip(rows, targets_BS.tolist(), strict=True):
            ids = there[int(row["file"][1])].ids
            assert ids[row["first_token"] :][: row["tokens"]].tolist() == targets


def test_documents_of_a_row_and_the_target_that_is_not_asked_for() -> None:
    """Documents 10 11 E | 20 E | 30 31 32 with E = 9, windows of 4."""
    file = TokenFile("f", np.array([10, 11, 9, 20, 9, 30, 31, 32]), 1, np.array([3, 5, 8]))
    batches = Batches([file], [], [(0, 4)], 1, 8, 1, 0, is_masked=True)
    ids_BS, targets_BS, documents_BS = batches.batch(0)
    assert documents_BS is not None and documents_BS.dtype == torch.int64
    first, second = (0, 1) if batches.rows(0)[0]["first_token"] == 0 else (1, 0)
    assert ids_BS[first].tolist() == [1, 10, 11, 9]
    assert targets_BS[first].tolist() == [10, 11, 9, -1]  # 20 does not follow from 10 11 E
    assert documents_BS[first].tolist() == [0, 0, 0, 0]
    assert ids_BS[second].tolist() == [1, 9, 30, 31]
    assert targets_BS[second].tolist() == [9, -1, 31, 32]
    assert documents_BS[second].tolist() == [0, 0, 1, 1]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_masked_rows_are_packed_rows_with_the_first_token_of_each_document_left_out(
    lengths: list[int], seed: int
) -> None:
    lengths = [*lengths, 8]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    file = TokenFile("f", np.arange(len(owner)), 1, np.cumsum(lengths))
    packed, masked = (Batches([file], [], [(0, 8)], 3, 16, 0, seed, is_masked=m) for m in (False, True))
    for step in range(3):
        a, b = packed.batch(step), masked.batch(step)
        assert torch.equal(a.ids_BS, b.ids_BS) and b.documents_BS is not None
        for row, targets, wanted, documents in zip(
            masked.rows(step), b.targets_BS.tolist(), a.targets_BS.tolist(), b.documents_BS.tolist(), strict=True
        ):
            at = row["first_token"]
            of = [owner[at], *owner[at : at + 7]]  # BOS goes with what follows it
            assert [d == documents[0] for d in documents] == [o == of[0] for o in of]
            assert [d == e for d, e in itertools.pairwise(documents)] == [o == p for o, p in itertools.pairwise(of)]
            assert targets == [w if of[j] == owner[at + j] else -1 for j, w in enumerate(wanted)]


def test_micro_batches_are_the_rows_in_equal_parts() -> None:
    batch = Batches(files(64), [], [(0, 8)], 2, 32, 9, 0, is_masked=True).batch(0)
    first, second = batch.chunk(2)
    for whole, a, b in zip(batch, first, second, strict=True):
        assert whole is not None and a is not None and b is not None and torch.equal(torch.cat((a, b)), whole)
    assert all(part.documents_BS is None for part in Batch(batch.ids_BS, batch.targets_BS, None).chunk(4))


def test_a_masked_row_trains_what_its_documents_train_alone(make_model: Callable[..., Transformer]) -> None:
    """The gradient of a row of two documents is the sum of theirs; in a packed row it is not."""
    ids = np.array([40, 41, 42, 9, 50, 51, 52, 9])
    file = TokenFile("f", ids, 1, np.array([4, 8]))
    masked = Batches([file], [], [(0, 8)], 1, 8, 1, 0, is_masked=True).batch(0)
    packed = masked._replace(documents_BS=None)
    first = Batch(torch.tensor([[1, 40, 41, 42, 9]]), torch.tensor([[40, 41, 42, 9, -1]]), None)
    second = Batch(torch.tensor([[50, 51, 52]]), torch.tensor([[51, 52, 9]]), None)

    def gradients(*rows: Batch) -> torch.Tensor:
        model = make_model().double()
        objective = Objective(model, Balance(load=0.0, z=0.0))
        for row in rows:
            objective.backward(*row, n_tokens=7, share=1 / len(rows), generator=torch.Generator())
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    alone, together = gradients(first, second), gradients(masked)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)  # rotary tables are float32
    assert (gradients(packed) - alone).abs().max() > 1e-3
