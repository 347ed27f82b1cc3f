"""What people write as llguidance's input."""

import json

import pytest

from coterie.engine.grammar_source import read_source
from coterie.errors import RequestError


def test_white_space_in_json_is_bounded_whatever_the_schema_says() -> None:
    form = json.loads(read_source("json_schema", {"type": "object"}).grammar(space=False))["grammars"][1]
    assert form["json_schema"]["type"] == "object"
    assert "{0,32}" in form["json_schema"]["x-guidance"]["whitespace_pattern"]


def test_a_space_before_the_form_is_outside_of_it() -> None:
    source = read_source("regex", "a|b")
    (plain, form), (spaced, same) = (json.loads(source.grammar(space=s))["grammars"] for s in (False, True))
    assert form == same and plain["lark_grammar"] == "start: @form\n" and spaced["lark_grammar"] == 'start: " " @form\n'


def test_choices_are_literal() -> None:
    form = json.loads(read_source("choice", ["a.b", "a.b", "/"]).grammar(space=False))["grammars"][1]
    assert form["lark_grammar"] == r"start: /a\x{2E}b|\x{2F}/"


def test_lark_and_gbnf_are_told_apart() -> None:
    for text in ('start: "a"', 'root ::= "a"'):
        form = json.loads(read_source("grammar", text).grammar(space=False))["grammars"][1]
        assert 'start: "a"' in form["lark_grammar"] and "::=" not in form["lark_grammar"]


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'regex'"):
        read_source("regexp", "a")
