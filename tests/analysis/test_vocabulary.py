"""Experts that were planted to read one token or one kind of token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coterie.analysis.blocks import blocks_of
from coterie.analysis.scan import read_through
from coterie.analysis.section import Section
from coterie.analysis.vocabulary import VocabularyReader, counted_tokens, kind_of_V

Make = Callable[..., Any]
PIECES = ["<s>", "▁the", ",", "▁▁▁▁", "7", "▁for", "ing", "rare"]


def found(trace: Any) -> dict[str, Section]:
    blocks = blocks_of(trace)
    return {s.key: s for s in read_through(trace, blocks, [VocabularyReader(trace, blocks)])}


@pytest.fixture
def bound(plant: Make) -> Any:
    """Token n is read by expert n, and by any other; `rare` occurs 5 times."""
    rng = np.random.default_rng(0)
    tokens = np.append(rng.integers(0, 7, 6995), np.full(5, 7))
    other = (tokens + rng.integers(1, 8, len(tokens))) % 8
    experts = np.stack([tokens, other], axis=1)[:, None]
    documents = np.arange(7000) // 100
    return plant(
        experts, token_ids=tokens, pieces=PIECES, documents=documents, domains=["python", "en"],
        domain_of_T=documents % 2,
    )  # fmt: skip


def test_each_expert_reads_its_token(bound: Any) -> None:
    section = found(bound)["tokens"]
    for favourite in section.facts["favourites"][:7]:
        piece, share, n = favourite["tokens"][0]
        assert piece == PIECES[favourite["expert"]] and share == 1.0 and n > 800
    assert section.facts["n_tokens_counted"] == 7 and section.facts["fair"] == 0.25
    assert section.facts["by_layer"] == [1.0]
    assert "100%" in section.sentence


def test_rare_tokens_are_not_favourites(bound: Any) -> None:
    assert not any("rare" in str(row[2]) for row in found(bound)["tokens"].rows)
    assert counted_tokens(bound, 3).max() == 2 and (counted_tokens(bound, 3) >= 0).sum() == 3


def test_uniform_choices_have_no_favourites(plant: Make, uniform: Make) -> None:
    tokens = np.random.default_rng(0).integers(0, 4, 8000)
    section = found(plant(uniform(8000), token_ids=tokens))["tokens"]
    assert section.facts["by_layer"] == pytest.approx([0.25, 0.25], abs=0.03)
    assert section.rows[0][2].startswith("id ")


def test_kinds_and_keywords_by_domain(bound: Any) -> None:
    section = found(bound)["kinds"]
    kinds = section.facts["by_kind"]
    assert kinds["indentation"]["share"][0][3] == 1.0 and kinds["digits"]["share"][0][4] == 1.0
    assert kinds["Python keywords, in code"]["share"][0][5] == 1.0
    assert kinds["Python keywords, in code"]["tokens"] + kinds["Python keywords, elsewhere"]["tokens"] == sum(
        bound.token_ids == 5
    )
    assert kinds["letters, en"]["tokens"] == sum((np.isin(bound.token_ids, [1, 6, 7])) & (bound.domain_of_T == 1))
    assert kinds["letters, en"]["share"][0][1] == pytest.approx(0.57, abs=0.05)


def test_without_pieces_there_are_no_kinds(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(100))
    assert kind_of_V(trace) is None and list(found(trace)) == ["tokens"]
    assert "No token occurs" not in found(trace)["tokens"].sentence


def test_a_text_too_short_to_say_anything(plant: Make, uniform: Make) -> None:
    sections = found(plant(uniform(6), token_ids=range(6), pieces=PIECES))
    assert sections["tokens"].sentence.startswith("No token occurs 20 times")
    assert sections["kinds"].sentence.startswith("No kind") and sections["kinds"].rows == ()
