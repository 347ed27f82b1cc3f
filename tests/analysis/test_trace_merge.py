from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import make_trace, open_trace
from coterie.analysis.trace_merge import merge_traces
from coterie.errors import DataError


def one(path: Path, domain: str, expert: int, **options: Any) -> Path:
    """Three tokens of two documents, all of one expert."""
    experts = np.full((3, 2, 1), expert)
    settings: dict[str, Any] = dict(n_experts=4, vocab_size=9, token_ids=[1, 2, expert])
    return make_trace(
        path, experts_TLK=experts, weights_TLK=np.ones((3, 2, 1)), documents=[0, 0, 1], domains=[domain] * 3,
        **{**settings, **options},
    )  # fmt: skip


def test_documents_and_domains_are_numbered_anew(tmp_path: Path) -> None:
    paths = [one(tmp_path / name, d, e) for name, d, e in (("a", "fr", 0), ("b", "de", 1), ("c", "fr", 2))]
    merged = open_trace(merge_traces(paths, tmp_path / "all"))
    assert merged.experts()[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert merged.documents.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5] and merged.n_documents == 6
    assert [merged.domains[d] for d in merged.domain_of_T] == ["fr"] * 3 + ["de"] * 3 + ["fr"] * 3
    assert merged.token_ids.tolist() == [1, 2, 0, 1, 2, 1, 1, 2, 2] and merged.positions.tolist() == [0, 1, 0] * 3


def test_unused_slots_come_along(tmp_path: Path) -> None:
    a = one(tmp_path / "a", "x", 1)
    b = one(tmp_path / "b", "x", 1, token_ids=[0, 0, 0])
    make_trace(
        b, experts_TLK=[[[-1], [2]]], weights_TLK=[[[0], [1]]], token_ids=[0], n_experts=4, vocab_size=9
    )  # fmt: skip
    assert open_trace(merge_traces([a, b], tmp_path / "c")).experts()[-1].tolist() == [[-1], [2]]


def test_the_output_may_be_one_of_them(tmp_path: Path) -> None:
    a, b = one(tmp_path / "a", "x", 1), one(tmp_path / "b", "y", 2)
    merge_traces([a, b], a)
    assert len(open_trace(a)) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fingerprint": "1" * 32, "model": "other"}, "another model"),
        ({"n_experts": 5}, "another model"),
        ({"tokenizer": "abc"}, "another tokenizer"),
        ({"logits_TLE": np.zeros((3, 2, 4))}, "only one has router logits"),
        ({"guesses_TLK": np.full((3, 2, 1), -1)}, "only one has guesses"),
    ],
)
def test_a_trace_of_another_kind_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    a, b = one(tmp_path / "a", "x", 1), one(tmp_path / "b", "x", 1, **options)
    with pytest.raises(DataError, match=says):
        merge_traces([a, b], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_damage_is_found_while_copying_and_leaves_nothing(tmp_path: Path) -> None:
    a, b = one(tmp_path / "a", "x", 1), one(tmp_path / "b", "x", 2)
    raw = bytearray(b.read_bytes())
    at = raw.index(b"BLCK") + 64 + 16  # the first token's id
    raw[at] ^= 1
    b.write_bytes(raw)
    with pytest.raises(DataError, match="checksum of block 0"):
        merge_traces([a, b], tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
