"""Structured output: what fits the form may be written and nothing else, in every kind of vocabulary; hostile forms."""

import importlib.util
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import coterie
from coterie.api import LanguageModel
from coterie.engine.engine import Engine
from coterie.engine.grammar import Grammar, Matcher
from coterie.engine.request import SamplingParams
from coterie.errors import RequestError
from coterie.tokenizer import TextStream, Tokenizer, load_tokenizer

_SPEC = importlib.util.spec_from_file_location(
    "engine_hostile_grammars", Path(__file__).with_name("hostile_grammars.py")
)
assert _SPEC is not None and _SPEC.loader is not None
_TABLE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TABLE)
HOSTILE = _TABLE.hostile_grammars()
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "日本"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return coterie.load()


@pytest.fixture(scope="module", params=["demo", "v1", "v3", "tekken", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """SentencePiece with byte pieces (two sizes), byte-level, and a fake that is all bytes."""
    if request.param == "demo":
        return request.getfixturevalue("demo").tokenizer
    if request.param == "bytes":
        return request.getfixturevalue("byte_tokenizer")
    files: dict[str, Path] = request.getfixturevalue("mistral_files")
    return load_tokenizer(files[request.param])


def write(matcher: Matcher, tokenizer: Tokenizer, seed: int, most: int = 300) -> list[int]:
    """Random tokens among those that fit; a short end is made likely after a while."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not matcher.is_done and len(ids) < most:
        logits_V = torch.randn(tokenizer.vocab_size, generator=generator)
        if len(ids) > 30:
            logits_V -= torch.arange(tokenizer.vocab_size) * 0.01
        matcher.mask_(logits_V)
        ids.append(int(logits_V.argmax()))
        matcher.accept(ids[-1])
    return ids


def text_of(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> str:
    stream = TextStream(tokenizer, context)
    return stream.push(ids) + stream.finish()


@pytest.mark.parametrize(
    ("kind", "spec", "pattern"),
    [
        ("regex", "[a-c]{2}-[0-9]{3}", "[a-c]{2}-[0-9]{3}"),
        ("regex", "[日本🙂é]{4}", "[日本🙂é]{4}"),
        ("regex", " ?/\\\\[x\"]{2}", " ?/\\\\[x\"]{2}"),
        ("choice", ["yes", "no", "vielleicht später", "  two"], "yes|no|vielleicht später|  two"),
        ("choice", ['"', "\\", "\n", "a/b", "é🙂", "\x7f\x00", "</s>"], '"|\\\\|\n|a/b|é🙂|\x7f\x00|</s>'),
        ("lark", 'start: "x" word{2}\nword: " " /[a-z]{1,3}/', "x( [a-z]{1,3}){2}"),
        ("gbnf", 'root ::= "x" [0-9]{2} ("é" | "日")', "x[0-9]{2}(é|日)"),
        ("grammar", 'root ::= "x" [0-9]{2}', "x[0-9]{2}"),
        ("grammar", 'start: "x" /[0-9]{2}/', "x[0-9]{2}"),
    ],
)  # fmt: skip
def test_only_what_fits_is_written(kind: str, spec: Any, pattern: str, tokenizer: Tokenizer) -> None:
    grammar = Grammar.compile(kind, spec, tokenizer)
    for seed in range(4):
        matcher = grammar.matcher()
        text = text_of(tokenizer, write(matcher, tokenizer, seed))
        assert matcher.is_done and re.fullmatch(pattern, text), (text, pattern)


def test_json_fits_its_schema(tokenizer: Tokenizer) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    grammar = Grammar.compile("json_schema", PERSON, tokenizer)
    for seed in range(4):
        matcher = grammar.matcher()
        text = text_of(tokenizer, write(matcher, tokenizer, seed))
        assert matcher.is_done
        jsonschema.validate(json.loads(text), PERSON)


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return {"type": "string", "maxLength": rng.randint(1, 8)}
    if kind == 1:
        return {"type": "integer", "minimum": -5, "maximum": rng.randint(0, 10**6)}
    if kind == 2:
        return {"enum": [1, "zwei", None, "é🙂"][: rng.randint(1, 4)]}
    if kind == 3:
        return {"type": ["boolean", "null"]}
    if kind == 4:
        return {"type": "string", "pattern": "^[a-f]{1,4}(-[0-9]{2})?$"}
    if kind == 5:
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": 1, "maxItems": 3}
    if kind == 6:
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    names = rng.sample(["a", "b c", "é", "日本", 'q"', "d"], rng.randint(1, 4))
    schema = {name: random_schema(rng, depth + 1) for name in names}
    return {"type": "object", "properties": schema, "required": names[::2], "additionalProperties": False}


def test_the_demo_writes_what_random_schemas_ask_for(demo: LanguageModel, is_full: bool) -> None:
    """Through the engine, all at once, greedy and not; every answer that is not cut off parses and validates."""
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(7)
    schemas = [random_schema(rng) for _ in range(200 if is_full else 24)]
    engine = Engine(demo.model, demo.tokenizer)
    wanted = {}
    for i, schema in enumerate(schemas):
        params = SamplingParams(max_tokens=120, temperature=(i % 3) / 2, seed=i)
        grammar = Grammar.compile("json_schema", schema, demo.tokenizer)
        wanted[engine.add(replace(demo.request("The answer is", params), grammar=grammar))] = schema
    texts, ends = dict.fromkeys(wanted, ""), {}
    while not engine.is_idle:
        for event in engine.step():
            texts[event.request] += event.text
            ends[event.request] = event.finish_reason
    assert set(ends.values()) <= {"stop", "length"}
    done = [number for number, end in ends.items() if end == "stop"]
    assert len(done) > len(schemas) / 2
    for number in done:
        jsonschema.validate(json.loads(texts[number]), wanted[number])


def test_an_answer_may_begin_with_the_space_that_is_not_shown(demo: LanguageModel) -> None:
    """`▁yes` reads `yes` where a text begins anew, and ` yes` after other text, where it does not fit."""
    tokenizer = demo.tokenizer
    grammar = Grammar.compile("regex", "[a-z]{3,9}", tokenizer)
    pieces = [tokenizer.piece(int(i)) for i in grammar.matcher().allowed().nonzero()]
    assert any(p.startswith("▁") for p in pieces) and any(not p.startswith("▁") for p in pieces)
    context = tokenizer.encode("It is", bos=True)
    pieces = [tokenizer.piece(int(i)) for i in grammar.matcher(context).allowed().nonzero()]
    assert pieces and not any(p.startswith("▁") for p in pieces)
    assert grammar.matcher([tokenizer.bos_id or 1]).allowed().equal(grammar.matcher().allowed())
    for seed in range(3):
        assert re.fullmatch("[a-z]{3,9}", text_of(tokenizer, write(grammar.matcher(context), tokenizer, seed), context))


def test_control_tokens_never_fit_but_the_end_where_the_text_may_end(demo: LanguageModel) -> None:
    tokenizer = demo.tokenizer
    assert tokenizer.eos_id is not None
    matcher = Grammar.compile("lark", 'start: <[0-5]>? "a"+', tokenizer).matcher(end_ids=(300,))
    assert not matcher.allowed()[:3].any()
    a = tokenizer.encode("a")[-1]
    matcher.accept(a)
    allowed = matcher.allowed()
    assert allowed[tokenizer.eos_id] and allowed[300] and not allowed[:2].any()
    matcher.accept(300)
    assert matcher.is_done and matcher.allowed().nonzero().flatten().tolist() == [tokenizer.eos_id, 300]


def test_a_finished_text_only_ends(demo: LanguageModel) -> None:
    matcher = Grammar.compile("choice", ["no"], demo.tokenizer).matcher()
    assert not matcher.is_done
    for i in demo.tokenizer.encode("no"):
        matcher.accept(i)
    assert matcher.is_done and matcher.allowed().nonzero().flatten().tolist() == [demo.tokenizer.eos_id]


def test_a_token_that_does_not_fit_is_refused(demo: LanguageModel) -> None:
    matcher = Grammar.compile("choice", ["no"], demo.tokenizer).matcher()
    with pytest.raises(RequestError, match="does not fit the grammar"):
        matcher.accept(demo.tokenizer.encode("yes")[-1])


def test_the_mask_strikes_out_padding_and_leaves_the_rest(demo: LanguageModel) -> None:
    n = demo.tokenizer.vocab_size
    matcher = Grammar.compile("regex", "[0-9]+", demo.tokenizer).matcher()
    logits_V = torch.arange(n + 70, dtype=torch.float32)
    allowed = matcher.allowed()
    matcher.mask_(logits_V)
    assert torch.isinf(logits_V[n:]).all() and torch.isinf(logits_V[:n][~allowed]).all()
    assert logits_V[:n][allowed].equal(torch.arange(n, dtype=torch.float32)[allowed])
    short_V = torch.zeros(100)
    matcher.mask_(short_V)
    assert short_V.isfinite().equal(allowed[:100])


def test_a_copy_goes_its_own_way(demo: LanguageModel) -> None:
    matcher = Grammar.compile("regex", "ab|ac", demo.tokenizer).matcher()
    matcher.accept(demo.tokenizer.encode("a")[-1])
    other = matcher.copy()
    matcher.accept(demo.tokenizer.encode("xb")[-1])
    assert matcher.is_done and not other.is_done


def test_the_same_grammar_is_compiled_once(demo: LanguageModel) -> None:
    first = Grammar.compile("json_schema", PERSON, demo.tokenizer)
    assert Grammar.compile("json_schema", json.dumps(PERSON), demo.tokenizer) is first


def test_text_or_a_list(demo: LanguageModel) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    grammar = Grammar.compile("json_or_text", schema, demo.tokenizer)
    for text, fits in (("[1,1]", True), ("[1, 1]", True), ("Well, [x]", True), ("[2", False), ("\n[", False)):
        matcher = grammar.matcher()
        try:
            for i in demo.tokenizer.encode(text):
                matcher.accept(i)
            assert fits, text
        except RequestError:
            assert not fits, text


@pytest.mark.parametrize("row", HOSTILE, ids=[row.name for row in HOSTILE])
def test_hostile_grammars_end_soon_and_cleanly(row: Any, demo: LanguageModel) -> None:
    began = time.monotonic()
    try:
        grammar = Grammar.compile(row.kind, row.spec, demo.tokenizer)
    except RequestError as e:
        assert row.ends != "compiles", e
        check_sentence(str(e))
    else:
        assert row.ends != "refused"
        try:
            write(grammar.matcher(), demo.tokenizer, 0, most=20)
        except RequestError as e:
            check_sentence(str(e))
    assert time.monotonic() - began < 6  # two seconds to compile; the rest is for a busy machine


def check_sentence(message: str) -> None:
    """One short line, without the parser's state or a program's words."""
    assert len(message) <= 250 and message.isprintable(), message
    assert not re.search(r"panic|backtrace|⟦|grm_prefix|Traceback|0x[0-9a-f]{6}|/rust|\.rs\b|llguidance/", message)


def test_there_are_enough_hostile_grammars() -> None:
    assert len(HOSTILE) >= 100 and len({row.name for row in HOSTILE}) == len(HOSTILE)
