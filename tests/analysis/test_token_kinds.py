"""Kinds of pieces in the three ways that vocabularies write them."""

import pytest

from coterie.analysis.token_kinds import KINDS, is_code, kinds_of, shown_piece, texts_of


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        ("\n", "line breaks"), ("<0x0A>", "line breaks"), ("\n\n", "line breaks"), ("▁▁▁▁", "indentation"),
        ("<0x09>", "indentation"), ("▁", "spaces"), ("7", "digits"), ("▁1984", "digits"), ("½", "digits"),
        (",", "punctuation"), ("▁“", "punctuation"), ('"""', "punctuation"), ("_", "punctuation"),
        ("▁==", "operators and symbols"), ("+=", "operators and symbols"), ("def", "Python keywords"),
        ("▁return", "Python keywords"), ("▁The", "capitalised words"), ("É", "capitalised words"),
        ("▁une", "words begin"), ("ing", "words go on"), ("’s", "words go on"), ("<0xE2>", "bytes of rare characters"),
        ("<0x41>", "capitalised words"), ("<s>", "control tokens"), ("[INST]", "control tokens"),
        ("", "control tokens"), ("<unk>", "control tokens"), ("x1", "mixed"), ("▁l'a", "mixed"),
        ("<", "operators and symbols"), ("▁été", "words begin"), ("日本", "words go on"),
    ],
)  # fmt: skip
def test_kinds(piece: str, kind: str) -> None:
    assert KINDS[kinds_of([piece, "▁a", "▁b"])[0]] == kind


def test_byte_level_pieces_are_read_as_bytes() -> None:
    pieces = ["Ġthe", "Ċ", "ĠĠĠĠ", "Ã©", "Ã", "Ġ"]
    assert texts_of(pieces) == [" the", "\n", "    ", "é", "�", " "]
    kinds = [KINDS[k] for k in kinds_of(pieces)]
    assert kinds == [
        "words begin", "line breaks", "indentation", "words go on", "bytes of rare characters", "spaces",
    ]  # fmt: skip


def test_pieces_are_shown_without_control_characters() -> None:
    assert shown_piece("\n a\x1b[31m") == "\\n▁a\\x1b[31m"


def test_code_is_told_by_the_name_of_the_domain() -> None:
    assert all(map(is_code, ("python", "github-code", "a.py", "HumanEval"))) and not any(map(is_code, ("en", "happy")))
