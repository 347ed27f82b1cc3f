"""What may be taken for independent: documents, groups of them, pieces of them; and which tokens follow another."""

from collections.abc import Callable
from typing import Any

import numpy as np

from coterie.analysis.blocks import blocks_of, starts_of_text

Make = Callable[..., Any]


def test_documents_are_blocks_and_halves_alternate_within_a_domain(plant: Make, uniform: Make) -> None:
    documents = np.repeat(np.arange(20), 5)
    trace = plant(uniform(100), documents=documents, domains=["a", "b"], domain_of_T=documents % 2)
    blocks = blocks_of(trace)
    assert len(blocks) == 20 and not blocks.is_cut and blocks.n_documents == 20
    assert all(len(set(blocks.of_T[documents == d])) == 1 for d in range(20))
    assert np.bincount(blocks.domain_B).tolist() == [10, 10]
    assert blocks.domain_B[blocks.of_T].tolist() == trace.domain_of_T.tolist()
    assert blocks.half_B[blocks.domain_B == 1].tolist() == [0, 1] * 5
    assert blocks.of_domain(1).tolist() == list(range(10, 20)) and len(blocks.of_domain(None)) == 20


def test_many_documents_are_put_together(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(3000), documents=np.repeat(np.arange(1500), 2))
    blocks = blocks_of(trace, most=100)
    assert len(blocks) == 100 and not blocks.is_cut
    assert np.bincount(blocks.of_T).tolist() == [30] * 100


def test_few_documents_are_cut_but_not_over_their_ends(plant: Make, uniform: Make) -> None:
    trace = plant(uniform(4000), documents=np.repeat([0, 1], [3000, 1000]))
    blocks = blocks_of(trace)
    assert blocks.is_cut and len(blocks) == 32
    assert set(blocks.of_T[:3000]).isdisjoint(blocks.of_T[3000:])
    assert (np.diff(blocks.of_T) >= 0).all()


def test_a_short_text_is_one_block(plant: Make, uniform: Make) -> None:
    blocks = blocks_of(plant(uniform(10)))
    assert len(blocks) == 1 and not blocks.is_cut


def test_a_domain_without_tokens_has_no_block(plant: Make, uniform: Make) -> None:
    blocks = blocks_of(plant(uniform(10), domains=["empty", "text"], domain_of_T=np.ones(10)))
    assert blocks.domain_B.tolist() == [1]


def test_documents_windows_and_domains_begin_texts(plant: Make, uniform: Make) -> None:
    trace = plant(
        uniform(8), documents=[0, 0, 0, 0, 1, 1, 1, 1], positions=[0, 1, 0, 1, 0, 1, 2, 3], domains=["a", "b"],
        domain_of_T=[0, 0, 0, 0, 0, 0, 0, 1],
    )  # fmt: skip
    assert starts_of_text(trace).tolist() == [True, False, True, False, True, False, False, True]
    assert starts_of_text(plant(uniform(1))).tolist() == [True]
