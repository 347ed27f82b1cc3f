"""Streamed text: whole characters only, and in sum what decoding at once gives, for every kind and any ids."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie.tokenizer import TextStream, Tokenizer
from coterie.tokenizer.huggingface import HuggingFaceTokenizer

KINDS = ["v1", "v3", "tekken", "from_json"]
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="session")
def from_json(chatml_json: dict[str, object]) -> Tokenizer:
    return HuggingFaceTokenizer(chatml_json)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


class CountingTokenizer:
    """One id for each byte; counts how many ids it was asked to decode."""

    kind, vocab_size, bos_id, eos_id = "bytes", 256, None, None

    def __init__(self) -> None:
        self.decoded = 0

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return bytes(ids).decode("utf-8", "replace")

    def piece(self, token_id: int) -> str:
        return f"<0x{token_id:02X}>"

    def control_id(self, text: str) -> int | None:
        return None


def _stream(tokenizer: Tokenizer, ids: Sequence[int], steps: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    stream = TextStream(tokenizer, context)
    cuts = [0, *sorted({min(s, len(ids)) for s in steps}), len(ids)]
    return [stream.push(ids[a:b]) for a, b in pairwise(cuts)] + [stream.finish()]


@RELAXED
@given(text=st.text(), bos=st.booleans(), steps=st.lists(st.integers(0, 60)))
def test_text_comes_out_as_decoded_at_once(tokenizer: Tokenizer, text: str, bos: bool, steps: list[int]) -> None:
    ids = tokenizer.encode(text, bos=bos)
    parts = _stream(tokenizer, ids, [*range(len(ids)), *steps])
    assert "".join(parts) == tokenizer.decode(ids)
    if "▁" not in text:  # SentencePiece's own sign for a space reads back as a space
        assert "".join(parts) == text


@RELAXED
@given(data=st.data())
def test_any_ids_come_out_as_decoded_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    byte_ids = tokenizer.encode("\x00\x7f") + tokenizer.encode("\U0001f600é\x01")
    some = st.sampled_from([0, 1, 2, *byte_ids]) | st.integers(0, tokenizer.vocab_size + 5) | st.integers(3, 1300)
    ids = data.draw(st.lists(some, max_size=120))
    steps = data.draw(st.lists(st.integers(0, 120)))
    assert "".join(_stream(tokenizer, ids, steps)) == tokenizer.decode(ids)


def test_an_id_beyond_the_vocabulary_does_not_stand_for_a_control_token(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("\U0001f600")[-1], tokenizer.encode("é\x01")[-2]
    ids = [first, tokenizer.vocab_size, 0, second]
    assert "".join(_stream(tokenizer, ids, [])) == tokenizer.decode(ids)


@RELAXED
@given(before=st.text(max_size=40), after=st.text(max_size=40))
def test_a_continuation_keeps_its_leading_space(tokenizer: Tokenizer, before: str, after: str) -> None:
    ids = tokenizer.encode(before + after, bos=True)
    cut = len(tokenizer.encode(before, bos=True))
    whole, context = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
    shared = next((n for n, (a, b) in enumerate(zip(whole, context, strict=False)) if a != b), len(context))
    assert "".join(_stream(tokenizer, ids[cut:], range(99), ids[:cut])) == whole[shared:]


def test_the_space_of_a_continuation(v1: Tokenizer) -> None:
    ids = v1.encode("Il était une fois", bos=True)
    assert TextStream(v1, ids[:3]).push(ids[3:]) == v1.decode(ids)[len(v1.decode(ids[:3])) :]
    assert v1.decode(ids[:3]) and TextStream(v1, v1.encode("Il", bos=True)).push(v1.encode("une")) == " une"
    assert TextStream(v1).push(v1.encode("une")) == "une"


@pytest.mark.parametrize("kind", KINDS)
def test_never_half_a_character(kind: str, request: pytest.FixtureRequest) -> None:
    """Every push of an emoji's bytes but the last gives nothing; a break-off gives U+FFFD as decode does."""
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode("🦜")
    stream = TextStream(tokenizer)
    parts = [stream.push([i]) for i in ids]
    assert "".join(parts) == "🦜" and set(parts[:-1]) <= {""}
    stream = TextStream(tokenizer)
    assert stream.push(ids[:-1]) == ""
    assert stream.finish() == tokenizer.decode(ids[:-1]) and set(stream.finish()) <= {"\ufffd"}


def test_a_context_that_ends_inside_a_character(v1: Tokenizer) -> None:
    ids = v1.encode("a🦜b")
    cut = next(n for n in range(len(ids)) if v1.piece(ids[n]).startswith("<0x")) + 2
    assert TextStream(v1, ids[:cut]).push(ids[cut:]) == "🦜b"


def test_control_tokens_say_nothing(v3: Tokenizer) -> None:
    stream = TextStream(v3)
    assert [stream.push([i]) for i in [1, 3, *v3.encode("Hello"), 4, *v3.encode("you"), 2]] == [
        "",
        "",
        "Hello",
        "",
        " you",
        "",
    ]


def test_hostile_ids_stay_exact(v1: Tokenizer) -> None:
    """Long runs of broken bytes, of control tokens, of spaces."""
    zero = next(i for i in range(1000) if v1.piece(i) == "<0x00>")
    rng = random.Random(7)
    pools = [
        range(zero + 0x80, zero + 0x100),
        [1, 2],
        [1, 2, zero + 0xE2, zero + 0x82],
        v1.encode("        "),
        [28705, 1],
    ]
    for _ in range(40):
        ids = [rng.choice(rng.choice(pools)) for _ in range(rng.choice([5, 60, 400]))]
        stream = TextStream(v1)
        assert "".join([stream.push([i]) for i in ids] + [stream.finish()]) == v1.decode(ids)


@pytest.mark.parametrize("n", [1_000, 4_000])
def test_a_push_costs_the_same_however_long_the_text(n: int) -> None:
    for text in ("ordinary text é " * n, "\x80" * n):
        tokenizer = CountingTokenizer()
        ids = text.encode("latin-1")[:n]
        stream = TextStream(tokenizer)
        out = "".join([stream.push([i]) for i in ids] + [stream.finish()])
        assert out == bytes(ids).decode("utf-8", "replace")
        assert tokenizer.decoded < 80 * n


def test_a_long_context_is_not_decoded_whole() -> None:
    tokenizer = CountingTokenizer()
    TextStream(tokenizer, tokenizer.encode("x" * 100_000)).push([120])
    assert tokenizer.decoded < 300
