"""What people write (schemas, patterns, choices, grammars) as llguidance's input, checked and in one spelling.

White space in JSON is bounded: a model that never saw the schema otherwise likes to write spaces without end. GBNF,
llama.cpp's notation, is turned into Lark by llguidance's own converter, which is Python and recursive.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark, gbnf_to_lark

from coterie.engine.grammar_limits import KINDS, check_choices, check_repeats, check_text, schema_text, sentence
from coterie.errors import RequestError, nearest

__all__ = ["Source", "read_source"]

_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "json_or_text": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "lark": "Lark grammar",
    "gbnf": "GBNF grammar",
    "grammar": "grammar",
}
_JSON_SPACE = r"[ ]?|\r?\n[ \t]{0,32}"  # one space, or a line break and an indent
_TEXT = r"TEXT: /\s*[^\s\[](.|\n)*/"  # anything that cannot be taken for a JSON list
_MOST_RULES = 1000
_DEEPEST_GROUP = 64
_INLINE = re.compile(r"%(json|llguidance)\b")


@dataclass(frozen=True)
class Source:
    """One grammar, checked. `text` says it all and is the same for the same grammar."""

    kind: str
    text: str

    @property
    def name(self) -> str:
        return _NAMES[self.kind]

    @property
    def n_bytes(self) -> int:
        """About what it occupies once compiled, by measurement: 1,000 properties in 26 KB take 8 MB."""
        return (256 << 10) + 320 * len(self.text)

    def grammar(self, *, space: bool) -> str:
        """llguidance's JSON; with `space`, of the form after one space."""
        body = "(@form | TEXT)" if self.kind == "json_or_text" else "@form"
        start = "start: " + ('" " ' if space else "") + body + "\n"
        text = _TEXT if self.kind == "json_or_text" else ""
        return json.dumps({"grammars": [{"lark_grammar": start + text}, {"name": "form", **_definition(self)}]})


def read_source(kind: str, spec: Any) -> Source:
    """The grammar in `spec`; `RequestError` where a limit is passed or it is not what `kind` says."""
    if kind not in KINDS:
        raise RequestError(f"unknown kind of grammar {kind!r}{nearest(str(kind), KINDS)}; known: {', '.join(KINDS)}")
    if kind in ("json_schema", "json_or_text"):
        return Source(kind, schema_text(spec))
    if kind == "json_object":
        return Source(kind, '{"type":"object"}')
    if kind == "choice":
        return Source(kind, json.dumps(check_choices(spec)))
    text = check_repeats(check_text(spec, _NAMES[kind]), _NAMES[kind])
    if kind != "regex" and _depth(text) > _DEEPEST_GROUP:
        raise RequestError(f"the {_NAMES[kind]} is nested more than {_DEEPEST_GROUP} deep")
    if kind != "regex" and _INLINE.search(text):
        raise RequestError(f"the {_NAMES[kind]} has a schema inside (%json or %llguidance), which is not allowed here")
    return Source(kind, text)


def _definition(source: Source) -> dict[str, Any]:
    """The entry in llguidance's list of grammars."""
    if source.kind.startswith("json"):
        schema = json.loads(source.text)
        rules = {"whitespace_flexible": True, "whitespace_pattern": _JSON_SPACE, "coerce_one_of": True}
        return {"json_schema": {**schema, "x-guidance": rules} if isinstance(schema, dict) else schema}
    if source.kind == "regex":
        (entry,) = json.loads(LLMatcher.grammar_from_regex(source.text))["grammars"]
        return {"lark_grammar": entry["lark_grammar"]}
    if source.kind == "choice":
        return {"lark_grammar": f"start: /{'|'.join(map(_escaped, json.loads(source.text)))}/"}
    return {"lark_grammar": source.text if source.kind == "lark" else _lark(source)}


def _escaped(text: str) -> str:
    """A regular expression that only matches this text."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _lark(source: Source) -> str:
    """GBNF as Lark, or, of kind "grammar", Lark as it is."""
    if source.text.count("::=") > _MOST_RULES:
        raise RequestError(f"the {source.name} has more than {_MOST_RULES:,} rules")
    try:
        return gbnf_to_lark(source.text) if source.kind == "gbnf" else any_to_lark(source.text)
    except RecursionError:
        raise RequestError(f"the {source.name} is nested too deeply") from None
    except Exception as error:  # the converter raises bare Exception, its own, and whatever it stumbles over
        is_meant = type(error) in (Exception, GbnfToLarkError)
        reason = sentence(str(error).split(" at line ")[0]) if is_meant else "a number or an escape is malformed"
        raise RequestError(f"the {source.name} cannot be read: {reason}") from None


def _depth(text: str) -> int:
    """How deep round brackets go, at most; those in strings count too."""
    depth = deepest = 0
    for c in text:
        if c == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif c == ")":
            depth = max(0, depth - 1)
    return deepest
