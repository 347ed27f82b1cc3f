"""Tokens in step with the text that is shown: their texts add up to it, at every moment and at the end."""

import random

import pytest

from coterie import load
from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event
from coterie.engine.stops import StopFilter
from coterie.server.tokens import Token, TokenReader, vocabulary
from coterie.tokenizer import TextStream, Tokenizer

TEXT = "Il était une fois, 日本 🙂 naïve\n  déjà vu END of it. Ärger 🙃!"


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load().tokenizer


def events(tokenizer: Tokenizer, ids: list[int], context: list[int], stops: list[str]) -> list[Event]:
    """What the engine makes of these ids."""
    stream, filter_, made = TextStream(tokenizer, context), StopFilter(stops), []
    for place, i in enumerate(ids):
        text, finish = filter_.push(stream.push([i])), None
        if filter_.is_stopped:
            finish = "stop"
        elif place == len(ids) - 1:
            finish = "length"
            text += filter_.push(stream.finish())
            text += "" if filter_.is_stopped else filter_.finish()
        made.append(Event(0, 0, i, text, finish, TokenLogprob(i, -1.0, ((i, -1.0),))))
        if finish is not None:
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
    stops = draw.choice([[], ["END"], ["é"], ["n", " une fo"]])
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


def test_the_end_token_has_no_text_and_is_not_shown(demo: Tokenizer) -> None:
    assert demo.eos_id is not None
    made = [Event(0, 0, demo.encode("Once")[0], "Once"[:2]), Event(0, 0, demo.eos_id, "", "stop")]
    made[0].text = demo.decode([demo.encode("Once")[0]])
    _, tokens = read(demo, made, [])
    assert [t.is_shown for t in tokens] == [True, False]


def test_alternatives_are_written_as_they_would_be(demo: Tokenizer) -> None:
    words = vocabulary(demo)
    assert words is vocabulary(demo)
    (i,) = [i for i in demo.encode("the king") if demo.piece(i) == "▁king"] or demo.encode("of")[:1]
    piece = demo.piece(i).replace("▁", " ")
    assert words.label(i, is_first=False) == piece and words.label(i, is_first=True) == piece.lstrip(" ")
    assert demo.eos_id is not None and words.label(demo.eos_id, is_first=False) == "</s>"
    assert words.raw(demo.vocab_size + 5) == b""
