"""100 schemas, patterns and grammars that no sound request has, each by name, and some that are large but lawful.

`REFUSED` are answered with a 4xx. `BORNE` are taken and must cost nobody anything: llguidance reads patterns without
backtracking and rules without recursion of its own.
"""

from typing import Any

__all__ = ["BORNE", "REFUSED"]


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}}


def a(kind: str, spec: Any) -> dict[str, Any]:
    return {"structured_outputs": {kind: spec}}


def prop(**fields: Any) -> dict[str, Any]:
    return schema({"type": "object", "properties": {"x": fields}, "required": ["x"], "additionalProperties": False})


def deep(n: int, key: str = "items") -> dict[str, Any]:
    value: dict[str, Any] = {"type": "integer"}
    for _ in range(n):
        value = {"type": "array", key: value} if key == "items" else {key: [value]}
    return value


def wide(n: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(n)}}


_LARGE = "x" * (300 << 10)
_SCHEMAS = {
    "a list": schema([1]),
    "a number": schema(5),
    "a text": schema("object"),
    "null": schema(None),
    "false, which nothing satisfies": schema(False),
    "an unknown type": schema({"type": "spaceship"}),
    "a type that is a number": schema({"type": 5}),
    "a type that is an object": schema({"type": {}}),
    "an unknown type among others": schema({"type": ["string", "spaceship"]}),
    "properties that are a list": schema({"type": "object", "properties": [1]}),
    "properties that are numbers": schema({"type": "object", "properties": {"x": 5}}),
    "required that is a text": schema({"type": "object", "properties": {"x": {}}, "required": "x"}),
    "required that holds numbers": schema({"type": "object", "properties": {"x": {}}, "required": [5]}),
    "items that are a number": schema({"type": "array", "items": 5}),
    "prefixItems that are a text": schema({"type": "array", "prefixItems": "x"}),
    "an enum that is an object": schema({"enum": {}}),
    "an enum of nothing": schema({"enum": []}),
    "an enum that is a text": schema({"enum": "abc"}),
    "a length below zero": prop(type="string", minLength=-1),
    "a greatest length below zero": prop(type="string", maxLength=-1),
    "a length that is a text": prop(type="string", minLength="5"),
    "half a character": prop(type="string", minLength=1.5),
    "a least length above the greatest": prop(type="string", minLength=5, maxLength=2),
    "items below zero": prop(type="array", minItems=-1),
    "more items than at most": prop(type="array", minItems=5, maxItems=2),
    "a minimum above the maximum": prop(type="integer", minimum=5, maximum=2),
    "a minimum that is a text": prop(type="integer", minimum="5"),
    "a pattern that is half": prop(type="string", pattern="("),
    "a pattern that is a number": prop(type="string", pattern=5),
    "a pattern that looks ahead": prop(type="string", pattern="(?=a)b"),
    "a pattern that looks behind": prop(type="string", pattern="(?<!a)b"),
    "a pattern that refers back": prop(type="string", pattern=r"(a)\1"),
    "a pattern of a million": prop(type="string", pattern="(a{1000}){1000}"),
    "a pattern of a million millions": prop(type="string", pattern="((a{1000}){1000}){1000}"),
    "a reference to nothing": schema({"$ref": "#/$defs/nothing"}),
    "a reference to a server": schema({"$ref": "http://127.0.0.1:1/schema.json"}),
    "a reference to a file": schema({"$ref": "file:///etc/passwd"}),
    "a reference up the tree": schema({"$ref": "../../../etc/passwd"}),
    "a reference that is a number": schema({"$ref": 5}),
    "65 lists deep": schema(deep(65)),
    "500 lists deep": schema(deep(500)),
    "70 choices deep": schema(deep(70, "anyOf")),
    "70 conjunctions deep": schema(deep(70, "allOf")),
    "1,001 properties": schema(wide(1001)),
    "10,000 properties": schema(wide(10_000)),
    "1,001 properties in two objects": schema({"anyOf": [wide(500), wide(501)]}),
    "1,001 properties in definitions": schema({"$defs": {"a": wide(1001)}, "$ref": "#/$defs/a"}),
    "an enum of 10,001": schema({"enum": [str(i) for i in range(10_001)]}),
    "an enum of 100,000": schema({"enum": list(range(100_000))}),
    "a description of 300 KB": schema({"type": "object", "description": _LARGE}),
    "a constant of 300 KB": schema({"const": _LARGE}),
    "a name of 300 KB": schema({"type": "object", "properties": {_LARGE: {}}}),
    "anyOf that is an object": schema({"anyOf": {}}),
    "anyOf of nothing": schema({"anyOf": []}),
    "anyOf of numbers": schema({"anyOf": [5]}),
    "allOf that is a number": schema({"allOf": 5}),
    "text and number at once": schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "a negation": schema({"not": {"type": "string"}}),
    "a condition": schema({"if": {"type": "string"}, "then": {"minLength": 5}}),
    "names by a half pattern": schema({"type": "object", "patternProperties": {"(": {"type": "integer"}}}),
    "a format that nobody knows": prop(type="string", format="spaceship"),
}
_PATTERNS = {
    "half a group": "(",
    "half a class": "[",
    "a class backwards": "[z-a]",
    "a count backwards": "a{2,1}",
    "a star alone": "*",
    "a count beyond all bounds": "a{100001}",
    "looks ahead": "(?=a)b",
    "does not look ahead": "(?!a)b",
    "looks behind": "(?<=a)b",
    "refers back": r"(a)\1",
    "an unknown script": r"\p{Spaceship}",
    "beyond Unicode": r"\x{110000}",
    "a million": "(a{1000}){1000}",
    "a million millions": "((a{1000}){1000}){1000}",
    "20,000 parentheses": "(" * 20_000 + "a" + ")" * 20_000,
    "50,000 branches": "|".join(f"b{i}" for i in range(50_000)),
    "300 KB": _LARGE,
    "a number": 5,
    "a list": ["a"],
}
_CHOICES = {
    "none": [],
    "a number": [5],
    "null": [None],
    "an empty text": [""],
    "a list": [["a"]],
    "a text": "yes",
    "10,001": [str(i) for i in range(10_001)],
    "300 KB": [_LARGE],
}
_GRAMMARS = {
    "nothing": "",
    "half a rule": "start: (",
    "no start": "begin: /a/",
    "a rule that is not there": "start: nothing",
    "half a pattern": "start: /(/",
    "a pattern that looks ahead": "start: /(?=a)b/",
    "an import of nothing": "%import common.SPACESHIP\nstart: SPACESHIP",
    "an import of a file": '%import "/etc/passwd"\nstart: "a"',
    "two rules of one name": 'start: "a"\nstart: "b"',
    "a terminal of itself": "start: A\nA: A /a/",
    "a half schema in it": 'start: %json { "type": }',
    "20,000 parentheses": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "300 KB": f'start: "{_LARGE}"',
    "a number": 5,
    "half a rule of GBNF": "root ::= (",
    "a rule of GBNF that is not there": "root ::= nothing",
}
REFUSED: dict[str, dict[str, Any]] = {
    **{f"schema: {name}": fields for name, fields in _SCHEMAS.items()},
    **{f"pattern: {name}": a("regex", spec) for name, spec in _PATTERNS.items()},
    **{f"choice: {name}": a("choice", spec) for name, spec in _CHOICES.items()},
    **{f"grammar: {name}": a("grammar", spec) for name, spec in _GRAMMARS.items()},
}
BORNE: dict[str, dict[str, Any]] = {
    "a backslash alone": a("regex", "\\"),
    "two enums of 10,001 in all": schema({"anyOf": [{"enum": list(range(5000))}, {"enum": list(range(5000, 10_001))}]}),
    "a pattern that backtracking dies of": a("regex", "(a+)+b"),
    "another one": a("regex", "(a|aa|a?)*c"),
    "a text of a billion": prop(type="string", maxLength=10**9),
    "a list of a million": prop(type="array", items={"type": "integer"}, maxItems=10**6),
    "a schema of itself": schema({"$ref": "#"}),
    "a tree": schema({"type": "object", "properties": {"child": {"$ref": "#"}}}),
    "1,000 properties": schema(wide(1000)),
    "an enum of 10,000": schema({"enum": [str(i) for i in range(10_000)]}),
    "60 lists deep": schema(deep(60)),
    "10,000 choices": a("choice", [str(i) for i in range(10_000)]),
    "left recursion": a("grammar", 'start: start "a" | "a"'),
    "a rule of nothing but itself": a("grammar", 'start: "a" | start'),
}
