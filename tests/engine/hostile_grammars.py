"""Schemas, patterns, choices and grammars that nobody means well with: (name, kind, specification, how it ends).

"refused" is one clean sentence, "compiles" a grammar, "either" whichever. The kinds are those of `Grammar.compile`;
over HTTP a schema is a `response_format` or `structured_outputs.json`, "lark", "gbnf" and "grammar" are its `grammar`.
None may take longer than two seconds, and what compiles must be followed quickly too.
"""

from typing import Any, NamedTuple

__all__ = ["Hostile", "hostile_grammars"]


class Hostile(NamedTuple):
    name: str
    kind: str
    spec: Any
    ends: str


def hostile_grammars() -> list[Hostile]:
    """At least 100 of them, made anew."""
    tables = (_schemas(), _wide_schemas(), _regexes(), _choices(), _lark(), _gbnf())
    return [Hostile(*row) for table in tables for row in table]


def _nested(n: int, key: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {key: {"a": schema}} if key == "properties" else {key: schema}
    return schema


def _properties(n: int, value: Any = None) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": value or {"type": "string"} for i in range(n)}}


def _schemas() -> list[tuple[str, str, Any, str]]:
    kind = "json_schema"
    return [
        ("null", kind, None, "refused"),
        ("a number", kind, 7, "refused"),
        ("a list", kind, [{"type": "object"}], "refused"),
        ("empty text", kind, "", "refused"),
        ("text that is no JSON", kind, "{", "refused"),
        ("text of a list", kind, "[1]", "refused"),
        ("text of deep lists", kind, "[" * 100_000, "refused"),
        ("text of deep objects", kind, '{"a":' * 5000 + "1" + "}" * 5000, "refused"),
        ("text with NaN", kind, '{"const": NaN}', "refused"),
        ("text with a huge number", kind, '{"const": ' + "9" * 5000 + "}", "refused"),
        ("text with an infinite number", kind, '{"const": 1e999}', "refused"),
        ("false", kind, False, "refused"),
        ("true", kind, True, "compiles"),
        ("nothing asked", kind, {}, "compiles"),
        ("unknown type", kind, {"type": "foo"}, "refused"),
        ("type is a number", kind, {"type": 7}, "refused"),
        ("type is empty", kind, {"type": []}, "refused"),
        ("types with a number", kind, {"type": ["string", 1]}, "refused"),
        ("properties is a list", kind, {"properties": [1]}, "refused"),
        ("properties is a number", kind, {"properties": 1}, "refused"),
        ("a property is a number", kind, {"properties": {"a": 1}}, "refused"),
        ("required is text", kind, {"required": "a"}, "refused"),
        ("required holds numbers", kind, {"required": [1]}, "refused"),
        ("required and impossible", kind, {"required": ["a"], "additionalProperties": False}, "either"),
        ("empty enum", kind, {"enum": []}, "refused"),
        ("enum is text", kind, {"enum": "abc"}, "refused"),
        ("enum of another type", kind, {"type": "string", "enum": [1, 2]}, "refused"),
        ("two types at once", kind, {"allOf": [{"type": "string"}, {"type": "integer"}]}, "refused"),
        ("empty anyOf", kind, {"anyOf": []}, "either"),
        ("anyOf is an object", kind, {"anyOf": {}}, "refused"),
        ("not", kind, {"not": {"type": "object"}}, "refused"),
        ("if", kind, {"if": {"type": "object"}, "then": {}}, "refused"),
        ("dependentSchemas", kind, {"dependentSchemas": {"a": {}}}, "refused"),
        ("uniqueItems", kind, {"type": "array", "uniqueItems": True}, "refused"),
        ("x-guidance", kind, {"x-guidance": {"whitespace_pattern": "(a+)+"}}, "refused"),
        ("nested x-guidance", kind, {"properties": {"a": {"x-guidance": {}}}}, "refused"),
        ("$ref over http", kind, {"$ref": "http://169.254.169.254/latest/meta-data"}, "refused"),
        ("$ref to a file", kind, {"$ref": "file:///etc/passwd"}, "refused"),
        ("$ref to nothing", kind, {"$ref": "#/$defs/none"}, "refused"),
        ("$ref is a number", kind, {"$ref": 7}, "refused"),
        ("$ref to itself", kind, {"$ref": "#"}, "either"),
        (
            "$refs in a ring",
            kind,
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            "either",
        ),
        (
            "an endless object",
            kind,
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "either",
        ),
        ("$id elsewhere", kind, {"$id": "http://x.invalid/s", "$ref": "other"}, "refused"),
        ("unknown format", kind, {"type": "string", "format": "zzz"}, "refused"),
        ("format is a number", kind, {"type": "string", "format": 7}, "refused"),
        ("pattern is a number", kind, {"type": "string", "pattern": 7}, "refused"),
        ("pattern unclosed", kind, {"type": "string", "pattern": "("}, "refused"),
        ("pattern with look-behind", kind, {"type": "string", "pattern": "(?<=a)b"}, "refused"),
        ("pattern with a back-reference", kind, {"type": "string", "pattern": "(a)\\1"}, "refused"),
        (
            "pattern that repeats a million times",
            kind,
            {"type": "string", "pattern": "((a{100}){100}){100}"},
            "refused",
        ),
        ("pattern that blows up a backtracker", kind, {"type": "string", "pattern": "^(a+)+$"}, "compiles"),
        ("pattern that blows up an automaton", kind, {"type": "string", "pattern": "^(a|b)*a(a|b){18}$"}, "compiles"),
        ("minLength above maxLength", kind, {"type": "string", "minLength": 5, "maxLength": 2}, "refused"),
        ("negative minLength", kind, {"type": "string", "minLength": -1}, "refused"),
        ("minLength of a billion", kind, {"type": "string", "minLength": 10**9}, "either"),
        ("maxLength of a billion", kind, {"type": "string", "maxLength": 10**9}, "either"),
        ("maxLength beyond 64 bits", kind, {"type": "string", "maxLength": 10**30}, "either"),
        ("maxLength is infinite", kind, {"type": "string", "maxLength": float("inf")}, "refused"),
        ("minItems of a million", kind, {"type": "array", "minItems": 10**6, "items": {"type": "integer"}}, "either"),
        ("minItems above maxItems", kind, {"type": "array", "minItems": 5, "maxItems": 2}, "refused"),
        ("maximum below minimum", kind, {"type": "integer", "minimum": 5, "maximum": 3}, "refused"),
        ("minimum is text", kind, {"type": "integer", "minimum": "5"}, "refused"),
        ("minimum is NaN", kind, {"type": "number", "minimum": float("nan")}, "refused"),
        ("maximum of 10^300", kind, {"type": "number", "minimum": 0.1234567890123, "maximum": 1e300}, "either"),
        ("integers up to 10^300", kind, {"type": "integer", "minimum": 0, "maximum": 10**300}, "either"),
        ("multipleOf zero", kind, {"type": "integer", "multipleOf": 0}, "refused"),
        ("multipleOf a tiny part", kind, {"type": "number", "multipleOf": 1e-12}, "either"),
        ("half a surrogate pair", kind, {"const": "\ud800"}, "refused"),
        ("half a pair as a name", kind, {"properties": {"\ud800": {}}, "required": ["\ud800"]}, "refused"),
        ("a name with a zero", kind, {"properties": {"\x00": {}}, "required": ["\x00"]}, "either"),
        ("patternProperties unclosed", kind, {"type": "object", "patternProperties": {"(": {}}}, "refused"),
        (
            "patternProperties overlap",
            kind,
            {"patternProperties": {f"^a{{{i}}}.*": {} for i in range(1, 200)}},
            "refused",
        ),
        ("a set, not JSON", kind, {"const": {1, 2}}, "refused"),
    ]


def _wide_schemas() -> list[tuple[str, str, Any, str]]:
    kind = "json_schema"
    twice = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    both = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    pairs = {f"a{i}": _properties(2, {"$ref": f"#/$defs/a{i + 1}"}) for i in range(60)}
    crossed = [{"anyOf": [{"properties": {f"k{i}_{j}": {}}} for j in range(4)]} for i in range(12)]
    return [
        ("65 deep properties", kind, _nested(65, "properties"), "refused"),
        ("5,000 deep properties", kind, _nested(5000, "properties"), "refused"),
        ("100,000 deep items", kind, _nested(100_000, "items"), "refused"),
        ("50 deep items", kind, _nested(50, "items"), "compiles"),
        ("1,000 properties", kind, _properties(1000), "compiles"),
        ("1,001 properties", kind, _properties(1001), "refused"),
        ("10,000 properties", kind, _properties(10_000), "refused"),
        ("1,200 properties in two places", kind, {"anyOf": [_properties(600), _properties(600)]}, "refused"),
        ("1,000 hard patterns", kind, _properties(1000, {"type": "string", "pattern": "^(a|b)*a(a|b){16}$"}), "either"),
        ("properties in allOf", kind, {"allOf": [_properties(40) for _ in range(20)]}, "either"),
        ("10,000 values", kind, {"enum": [f"v{i}" for i in range(10_000)]}, "compiles"),
        ("10,001 values", kind, {"enum": [f"v{i}" for i in range(10_001)]}, "refused"),
        ("100,000 values", kind, {"enum": list(range(100_000))}, "refused"),
        ("a constant of 20,000 letters", kind, {"const": "x" * 20_000}, "refused"),
        ("300 KB of text", kind, {"enum": ["x" * 9000 + str(i) for i in range(40)]}, "refused"),
        ("300 KB of spaces", kind, "{" + " " * 300_000 + "}", "refused"),
        ("a million nulls", kind, {"enum": [[None] * 1000] * 1000}, "refused"),
        (
            "1,000 alternatives",
            kind,
            {"anyOf": [{"type": "object", "properties": {f"k{i}": {}}, "required": [f"k{i}"]} for i in range(1000)]},
            "either",
        ),
        ("references that double", kind, {"$ref": "#/$defs/a0", "$defs": {**twice, "a40": {}}}, "either"),
        ("allOf that doubles", kind, {"$ref": "#/$defs/a0", "$defs": {**both, "a40": {}}}, "either"),
        ("objects that double", kind, {"$ref": "#/$defs/a0", "$defs": {**pairs, "a60": {}}}, "either"),
        ("every choice with every other", kind, {"allOf": crossed}, "either"),
        (
            "oneOf with oneOf",
            kind,
            {"oneOf": [{"oneOf": [{"const": i * 10 + j} for j in range(10)]} for i in range(30)]},
            "either",
        ),
    ]


def _regexes() -> list[tuple[str, str, Any, str]]:
    kind = "regex"
    return [
        ("regex is a number", kind, 7, "refused"),
        ("regex is empty", kind, "", "refused"),
        ("regex unclosed", kind, "(", "refused"),
        ("regex with 20,000 brackets", kind, "(" * 20_000 + ")" * 20_000, "refused"),
        ("regex with 60,000 brackets open", kind, "(" * 60_000, "refused"),
        ("regex of 100 KB", kind, "a" * 100_000, "refused"),
        ("regex with look-ahead", kind, "(?=a)b", "refused"),
        ("regex with look-behind", kind, "(?<!a)b", "refused"),
        ("regex with a back-reference", kind, "(a)\\1", "refused"),
        ("regex that matches nothing", kind, "[^\\s\\S]", "refused"),
        ("regex with a million repeats", kind, "(a{1000}){1000}", "refused"),
        ("regex with many repeats inside", kind, "((((a{20}){20}){20}){20}){20}", "refused"),
        ("regex with a huge count", kind, "a{99999999999999999999}", "refused"),
        ("regex with counts in turn", kind, "a{9}{9}{9}{9}{9}{9}", "refused"),
        ("regex with a backwards count", kind, "a{5,2}", "refused"),
        ("regex (x+x+)+y", kind, "(x+x+)+y", "compiles"),
        ("regex of an exponential automaton", kind, "(a|b)*a(a|b){400}", "compiles"),
        ("regex of gaps", kind, "(.{0,100}x){100}", "either"),
        ("regex of 10,000 branches", kind, "|".join(f"w{i}" for i in range(10_000)), "compiles"),
        ("regex of letters of the world", kind, "[\\p{L}\\p{N}]{500}(\\p{Lu}|\\p{Ll}){500}", "either"),
        ("regex with an unknown class", kind, "\\p{Nope}", "refused"),
        ("regex with half a pair", kind, "\ud800", "refused"),
        ("regex with a Lark rule in it", kind, 'a/\nother: "x"', "either"),
        ("regex that is all there is", kind, "(?s:.*)", "compiles"),
        ("regex of bytes that are no text", kind, "(?-u:\\xff)", "either"),
    ]


def _choices() -> list[tuple[str, str, Any, str]]:
    kind = "choice"
    return [
        ("choice is text", kind, "yes", "refused"),
        ("choice of nothing", kind, [], "refused"),
        ("choice of numbers", kind, [1, 2], "refused"),
        ("choice of an empty text", kind, [""], "refused"),
        ("choice of 10,001", kind, [str(i) for i in range(10_001)], "refused"),
        ("choice of 10,000", kind, [str(i) for i in range(10_000)], "compiles"),
        ("choice of a long text", kind, ["x" * 20_000], "refused"),
        ("choice of much text", kind, ["x" * 9000 + str(i) for i in range(40)], "refused"),
        ("choice of half a pair", kind, ["\udfff"], "refused"),
        (
            "choice of quotes and controls",
            kind,
            ['"', "\\", "\n", "\x00", "\x7f", "\u2028", "</s>", "/", '" | x'],
            "compiles",
        ),
        ("choice of the same", kind, ["a"] * 5000, "compiles"),
    ]


def _lark() -> list[tuple[str, str, Any, str]]:
    kind = "lark"
    chain = "\n".join(f'r{i}: r{i + 1} | "x{i}" r{i + 1}' for i in range(2000))
    double = "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(30))
    terminals = "\n".join(f"R{i}: R{i + 1} R{i + 1}" for i in range(30))
    return [
        ("lark is a list", kind, ["start: 'a'"], "refused"),
        ("lark without start", kind, 'other: "a"', "refused"),
        ("lark with an unknown rule", kind, "start: foo", "refused"),
        ("lark unclosed", kind, 'start: "a" (', "refused"),
        ("lark of noise", kind, "\x01\x02%%%", "refused"),
        ("lark of left recursion", kind, 'start: start "a" | "a"', "compiles"),
        ("lark of left recursion alone", kind, 'start: start "a"', "either"),
        ("lark of a rule that is itself", kind, "start: start", "either"),
        ("lark of a ring", kind, "start: a\na: b\nb: a", "either"),
        ("lark of terminals in a ring", kind, "start: A\nA: B\nB: A", "refused"),
        ("lark with 2,000 rules", kind, f'start: r0\n{chain}\nr2000: "e"', "either"),
        ("lark that doubles", kind, f'start: r0\n{double}\nr30: "e"', "either"),
        ("lark whose terminals double", kind, f'start: R0\n{terminals}\nR30: "e" | "f"', "either"),
        ("lark of repeats of repeats", kind, 'start: (("a"{1000}){1000}){1000}', "refused"),
        ("lark of repeats by name", kind, 'start: a{900}\na: b{900}\nb: "x"{90}', "either"),
        ("lark of ambiguous rules", kind, 'start: a a a a a a a a\na: "x" a | "x" a a | "x"', "either"),
        ("lark of nothing repeated", kind, 'start: ("" | "a"?)*', "either"),
        ("lark of brackets", kind, "start: " + "(" * 500 + '"a"' + ")" * 500, "refused"),
        ("lark of a schema inside", kind, "start: %json {}", "refused"),
        ("lark of options inside", kind, '%llguidance {"no_forcing": true}\nstart: "a"', "refused"),
        ("lark that imports", kind, '%import .etc.passwd\nstart: "a"', "refused"),
        ("lark of a control token", kind, 'start: <s> "a"', "refused"),
        ("lark of a control token by number", kind, 'start: <[1]> "a"', "refused"),
        ("lark of a grammar elsewhere", kind, "start: @other", "refused"),
        ("lark of the grammar around it", kind, "start: @form", "either"),
        ("lark of a long literal", kind, 'start: "' + "ab" * 30_000 + '"', "either"),
        ("lark of 100 KB", kind, 'start: "a"\n' + "// x\n" * 20_000, "refused"),
        ("lark of a regex that fails", kind, "start: /(/", "refused"),
        ("lark of a complement", kind, "start: A\nA: ~/(a|b)*a(a|b){18}/ & /[ab]*/", "either"),
        ("lark of intersections", kind, "start: A\nA: /(a|b)*a(a|b){15}/ & /(a|b)*b(a|b){17}/", "either"),
        ("lark of half a pair", kind, 'start: "\ud800"', "refused"),
    ]


def _gbnf() -> list[tuple[str, str, Any, str]]:
    kind = "gbnf"
    many = "\n".join(f"r{i} ::= r{i + 1}" for i in range(1500))
    names = "\n".join(f"r{i} ::= r{i + 1}" for i in range(900))
    return [
        ("gbnf is a number", kind, 7, "refused"),
        ("gbnf without root", kind, 'a ::= "x"', "refused"),
        ("gbnf with an unknown rule", kind, "root ::= foo", "refused"),
        ("gbnf unclosed text", kind, 'root ::= "abc', "refused"),
        ("gbnf unclosed class", kind, "root ::= [abc", "refused"),
        ("gbnf ends in a backslash", kind, 'root ::= "abc\\', "refused"),
        ("gbnf with a bad escape", kind, 'root ::= "\\q"', "refused"),
        ("gbnf of brackets", kind, "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "refused"),
        ("gbnf with 1,500 rules", kind, f'root ::= r0\n{many}\nr1500 ::= "e"', "refused"),
        ("gbnf with 900 names", kind, f'root ::= r0\n{names}\nr900 ::= "e"', "either"),
        ("gbnf of a million repeats", kind, 'root ::= ("a"{1000}){1000}', "refused"),
        ("gbnf of left recursion", kind, 'root ::= root "a" | "a"', "either"),
        ("gbnf with a rule twice", kind, 'root ::= "a"\nroot ::= "b"', "either"),
        ("gbnf with a rule called start", kind, 'root ::= start\nstart ::= "b"', "refused"),
        ("gbnf of a huge count", kind, 'root ::= "a"{1,' + "9" * 5000 + "}", "refused"),
        ("gbnf of a digit that is none", kind, 'root ::= "a"{²}', "refused"),
        ("grammar of either kind that is neither", "grammar", "once upon a time", "refused"),
        ("unknown kind", "xml", "<a/>", "refused"),
    ]
