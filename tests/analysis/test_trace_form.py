from dataclasses import asdict, replace

import pytest

from coterie.analysis.trace_form import FORMAT, VERSION, Form, block_tokens, column_sizes, header_bytes, parse_header
from coterie.errors import DataError

MIXTRAL = Form(model="m", fingerprint="f", n_experts=8, top_k=2, n_layers=32, vocab_size=32000)


def test_mixtral_takes_98_bytes_a_token() -> None:
    assert sum(column_sizes(MIXTRAL, 1000, 2, 0).values()) == 98 * 1000 + 32


@pytest.mark.parametrize(("n_experts", "bits"), [(1, 4), (16, 4), (17, 8), (256, 8), (257, 16)])
def test_bits_of_an_id(n_experts: int, bits: int) -> None:
    assert replace(MIXTRAL, n_experts=n_experts, top_k=1).id_bits == bits


def test_blocks_stay_small_whatever_is_recorded() -> None:
    many = replace(MIXTRAL, n_experts=128, n_layers=64, has_logits=True)
    for form in (MIXTRAL, many):
        n = block_tokens(form)
        assert 256 <= n <= 1 << 16 and sum(column_sizes(form, n, n, 0).values()) < 40 << 20


def test_a_header_is_a_multiple_of_64_bytes() -> None:
    assert all(len(header_bytes(replace(MIXTRAL, model="x" * n))) % 64 == 0 for n in range(70))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "no routing trace"),
        ({"version": 2}, "of version 2"),
        ({"version": None}, "of version None"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_experts": 1 << 40}, "n_experts is 1099511627776"),
        ({"vocab_size": "32000"}, "vocab_size is '32000'"),
        ({"has_logits": 1}, "has_logits is 1"),
        ({"top_k": 9}, "9 experts a token of 8"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, object], says: str) -> None:
    good = {"format": FORMAT, "version": VERSION, **asdict(MIXTRAL)}
    assert parse_header(good, "x") == MIXTRAL
    with pytest.raises(DataError, match=says):
        parse_header({**good, **change}, "x")


def test_a_missing_key_is_named() -> None:
    document = {"format": FORMAT, "version": VERSION, **asdict(MIXTRAL)}
    del document["n_experts"]
    with pytest.raises(DataError, match="no n_experts"):
        parse_header(document, "x")
