"""`tokenize` says why: byte fallback, the space in front, split digits, control tokens and typed ones."""

from coterie.tokenizer import Tokenizer
from coterie.tokenizer.explain import explain


def _reasons(tokenizer: Tokenizer, text: str, *, bos: bool = False) -> dict[str, str]:
    return {t.piece: "; ".join(t.why) for t in explain(tokenizer, tokenizer.encode(text, bos=bos), text)}


def test_reasons(v1: Tokenizer) -> None:
    why = _reasons(v1, "Hello 42  \u0d9e</s>", bos=True)
    assert why["<s>"] == "control token: begins the text (BOS)"
    assert why["▁Hello"] == "▁ in front is the space that the tokenizer adds to a text"
    assert why["4"] == why["2"] == "numbers are split into digits"
    assert why["<0xE0>"].startswith("byte 1 of 3 of 'ඞ' (U+0D9E), which has no piece")
    assert why["</"] == "</s> in a text stays text, it is not the control token"
    assert why["▁▁"] == "a run of 2 spaces"


def test_texts_add_up(v1: Tokenizer, tekken: Tokenizer) -> None:
    for tokenizer in (v1, tekken):
        for text in ("Ça va, mon élève ?", "🦜\u0d9e", " 1234", "", "e\u0301\ufffd"):
            tokens = explain(tokenizer, tokenizer.encode(text, bos=True), text)
            assert "".join(t.text for t in tokens) == text
            assert [t.id for t in tokens] == tokenizer.encode(text, bos=True)


def test_a_single_digit_is_not_a_split_number(v1: Tokenizer) -> None:
    assert _reasons(v1, "a 4 b")["4"] == ""
