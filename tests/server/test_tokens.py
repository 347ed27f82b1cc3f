"""Tokens in step with the text that is shown: their texts add up to it, at every moment and at the end."""

import random

import pytest

from coterie import load
from coterie.engine.request import Request, SamplingParams
from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event, Sequence
from coterie.server.tokens import Token, TokenReader, vocabulary
from coterie.tokenizer import Tokenizer

TEXT = "Il était une fois, 日本 🙂 naïve\n  déjà vu END of it. Ärger 🙃!"


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load().tokenizer


def events(tokenizer: Tokenizer, ids: list[int], context: list[int], stops: list[str]) -> list[Event]:
    """What the engine makes of these ids."""
    request = Request((1,), SamplingParams(max_tokens=len(ids), stop=stops, temperature=1), tuple(context))
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    sequence, made = Sequence.of(0, request, 0, 0, eos, tokenizer), []
    for i in ids:
        made.append(sequence.write(i, TokenLogprob(i, -1.0, ((i, -1.0),))))
        if sequence.finish_reason is not None:
            break
    return made


def read(tokenizer: Tokenizer, made: list[Event], context: list[int]) -> tuple[str, list[Token]]:
    reader, content, tokens = TokenReader(tokenizer, tuple(context)), "", []
    for event in made:
        reader.take(event)
        content += event.text
        tokens += reader.release() if event.finish_reason is None else reader.finish()
        shown = "".join(t.text for t in tokens)
        assert content.startswith(shown)
    return content, tokens


@pytest.mark.parametrize("seed", range(20))
def test_the_texts_of_tokens_add_up_to_the_content(demo: Tokenizer, seed: int) -> None:
    draw = random.Random(seed)
    ids = demo.encode(TEXT)
    ids = [draw.choice(ids) if draw.random() < 0.3 else i for i in ids][: draw.randrange(1, len(ids))]
    context = demo.encode("Once", bos=True) if draw.random() < 0.5 else []
    stops = draw.choice([[], ["END"], ["é"], ["n", " une fo"], ["🙂 na"]])
    content, tokens = read(demo, events(demo, ids, context, stops), context)
    assert "".join(t.text for t in tokens) == content
    assert all(t.text == "" for t in tokens if not t.is_shown)


def test_bytes_are_those_of_the_token(demo: Tokenizer) -> None:
    """A character of three tokens: the bytes are each token's own, the text is the last one's."""
    ids = demo.encode("日")
    spelled = [i for i in ids if demo.piece(i).startswith("<0x")]
    assert len(spelled) == 3
    content, tokens = read(demo, events(demo, spelled, [ids[0]], []), [ids[0]])
    assert content == "日" and [t.text for t in tokens] == ["", "", "日"]
    assert b"".join(t.raw for t in tokens) == "日".encode()
    assert all(t.is_shown for t in tokens)


def test_half_a_character_at_the_end_reads_as_one_that_is_broken(demo: Tokenizer) -> None:
    spelled = [i for i in demo.encode("日") if demo.piece(i).startswith("<0x")][:1]
    content, tokens = read(demo, events(demo, spelled, [], []), [])
    assert content == "�" == "".join(t.text for t in tokens)


@pytest.mark.parametrize("end", ["", "</s>"])
def test_half_a_character_before_the_end_is_shown_with_it(demo: Tokenizer, end: str) -> None:
    """The end token brings no text of its own, but then the half character has waited long enough."""
    first = next(i for i in demo.encode("日") if demo.piece(i).startswith("<0x"))
    assert demo.eos_id is not None
    content, tokens = read(demo, events(demo, [first] + [demo.eos_id] * (end != ""), [], []), [])
    assert content == "\N{REPLACEMENT CHARACTER}" == "".join(t.text for t in tokens if t.is_shown)


def test_bytes_of_a_character_that_a_stop_string_cuts_off_are_not_shown(demo: Tokenizer) -> None:
    ids = demo.encode("a🙂")
    assert sum(demo.piece(i).startswith("<0x") for i in ids) == 4
    content, tokens = read(demo, events(demo, ids, [], ["🙂"]), [])
    assert content == "a" == "".join(t.text for t in tokens)
    assert b"".join(t.raw for t in tokens if t.is_shown) == b"a" and len(tokens) == len(ids)


def test_the_end_token_has_no_text_and_is_not_shown(demo: Tokenizer) -> None:
    assert demo.eos_id is not None
    _, tokens = read(demo, events(demo, [demo.encode("Once")[0], demo.eos_id], [], []), [])
    assert [t.is_shown for t in tokens] == [True, False]


def test_alternatives_are_written_as_they_would_be(demo: Tokenizer) -> None:
    words = vocabulary(demo)
    assert words is vocabulary(demo)
    (i,) = [i for i in demo.encode("the king") if demo.piece(i) == "▁king"] or demo.encode("of")[:1]
    piece = demo.piece(i).replace("▁", " ")
    assert words.label(i, is_first=False) == piece and words.label(i, is_first=True) == piece.lstrip(" ")
    assert demo.eos_id is not None and words.label(demo.eos_id, is_first=False) == "</s>"
    assert words.raw(demo.vocab_size + 5) == b""
