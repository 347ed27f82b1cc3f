"""Arrays there and back. Shapes: T tokens, L layers, K slots, E experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import make_trace, open_trace
from coterie.errors import DataError


def planted(T: int, L: int, E: int, K: int) -> dict[str, Any]:
    """Every third token has an unused last slot."""
    rng = np.random.default_rng(T + E)
    experts = np.argsort(rng.random((T, L, E)), -1)[..., :K].astype(np.int16)
    weights = rng.random((T, L, K))
    experts[::3, :, -1] = -1
    documents = np.sort(rng.integers(0, 5, T))
    guesses = np.argsort(rng.random((T, L, E)), -1)[..., :K].astype(np.int16)
    guesses[:, 0] = -1
    return dict(
        experts_TLK=experts, weights_TLK=weights, token_ids=rng.integers(0, 300, T), documents=documents,
        domains=[f"d{n % 2}" for n in documents], n_experts=E, guesses_TLK=guesses,
        logits_TLE=rng.normal(size=(T, L, E)),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (37, 3, 8, 2), (50, 2, 17, 3), (40, 2, 300, 1), (900, 5, 2000, 2)])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, int, int, int]) -> None:
    a = planted(*shape)
    T, L, _, _ = shape
    trace = open_trace(make_trace(tmp_path / "a.trace", **a))
    assert len(trace) == T and (trace.n_layers, trace.n_experts, trace.top_k) == shape[1:]
    assert (trace.token_ids == a["token_ids"]).all() and (trace.documents == a["documents"]).all()
    assert [trace.domains[d] for d in trace.domain_of_T] == a["domains"]
    for start, stop in ((0, None), (T // 3, T // 2), (T - 1, T), (-2, None), (0, T + 9)):
        at = slice(start, stop)
        assert (trace.experts(start, stop) == a["experts_TLK"][at]).all()
        assert (trace.guesses(start, stop) == a["guesses_TLK"][at]).all()
        assert abs(trace.weights(start, stop) - a["weights_TLK"][at]).max(initial=0) < 1 / 509
        assert abs(trace.logits(start, stop) - a["logits_TLE"][at]).max(initial=0) < 0.01
        for layer in (0, L - 1, -1):
            assert (trace.experts(start, stop, layer) == a["experts_TLK"][at, layer]).all()
            assert (trace.guesses(start, stop, layer) == a["guesses_TLK"][at, layer]).all()
            assert (trace.weights(start, stop, layer) == trace.weights(start, stop)[:, layer]).all()
            assert (trace.logits(start, stop, layer) == trace.logits(start, stop)[:, layer]).all()
    if shape[2] == 2000:
        assert trace.n_blocks > 1  # the parts above cross a border between blocks


def test_types_and_absent_columns(tmp_path: Path) -> None:
    path = make_trace(
        tmp_path / "a", experts_TLK=[[[1, 0]]], weights_TLK=[[[0.75, 0.25]]], token_ids=[4], n_experts=2,
        pieces=["a"] * 5, model="mine",
    )  # fmt: skip
    trace = open_trace(path)
    columns = trace.experts(), trace.weights(), trace.token_ids, trace.documents, trace.positions, trace.domain_of_T
    assert [c.dtype.name for c in columns] == ["int16", "float32", "int32", "int32", "int32", "int16"]
    assert trace.logits() is None and trace.guesses() is None
    assert trace.pieces == ["a"] * 5 and trace.vocab_size == 5 and trace.model == "mine" and trace.domains == ["text"]


def test_positions_begin_again_in_every_window_and_document(tmp_path: Path) -> None:
    path = make_trace(
        tmp_path / "a", experts_TLK=np.zeros((7, 1, 1)), weights_TLK=np.ones((7, 1, 1)), token_ids=np.zeros(7, int),
        n_experts=1, documents=[0, 0, 0, 0, 1, 1, 1], positions=[0, 1, 0, 1, 0, 1, 2],
    )  # fmt: skip
    trace = open_trace(path)
    assert trace.positions.tolist() == [0, 1, 0, 1, 0, 1, 2] and trace.documents.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert trace.n_documents == 2


def test_domains_may_be_numbers_with_names(tmp_path: Path) -> None:
    path = make_trace(
        tmp_path / "a", experts_TLK=np.zeros((3, 1, 1)), weights_TLK=np.ones((3, 1, 1)), token_ids=[0, 0, 0],
        n_experts=1, domains=["fr", "de", "never"], domain_of_T=[1, 0, 1],
    )  # fmt: skip
    trace = open_trace(path)
    assert trace.domains == ["fr", "de", "never"] and trace.domain_of_T.tolist() == [1, 0, 1]


def test_a_trace_without_tokens(tmp_path: Path) -> None:
    empty = np.zeros((0, 2, 2))
    path = make_trace(tmp_path / "a", experts_TLK=empty, weights_TLK=empty, token_ids=np.zeros(0, int), n_experts=2)
    trace = open_trace(path)
    assert len(trace) == 0 and trace.experts().shape == (0, 2, 2) and trace.positions.shape == (0,)


def test_weights_above_one_keep_their_scale(tmp_path: Path) -> None:
    weights = np.array([[[2.5, 0.5]]])
    path = make_trace(tmp_path / "a", experts_TLK=[[[0, 1]]], weights_TLK=weights, token_ids=[0], n_experts=2)
    assert np.allclose(open_trace(path).weights(), weights, atol=2.5 / 510)


def test_what_no_trace_can_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    good: dict[str, Any] = dict(experts_TLK=[[[0, 1]]], weights_TLK=[[[1, 0]]], token_ids=[3], n_experts=2)
    for change, says in (
        ({"experts_TLK": [[[0, 2]]]}, "experts go from 0 to 2"),
        ({"experts_TLK": [[[0, -2]]]}, "experts go from -2"),
        ({"token_ids": [9], "vocab_size": 9}, "token ids go from 9"),
        ({"weights_TLK": [[[float("nan"), 0]]]}, "not finite"),
    ):
        with pytest.raises(DataError, match=says):
            make_trace(tmp_path / "a", **{**good, **change})
    assert list(tmp_path.iterdir()) == []
