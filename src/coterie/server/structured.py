"""Which form an answer must have, by any of the names in use: OpenAI's, vLLM's old and new ones, llama-server's.

At most one may be given. Compiling is the engine's (`engine/grammar.py`), in a thread and within two seconds.
"""

import asyncio
from typing import Any

from coterie.engine.grammar import Grammar
from coterie.errors import CoterieError
from coterie.server.failures import ApiError, refused, translated
from coterie.server.models import Served
from coterie.server.schema_fields import shown
from coterie.server.schema_sampling import Sampled

__all__ = ["Form", "compiled", "form_of", "grammar_of"]

_KINDS = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
_FIELDS = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
    "json_schema": "json_schema",
}
Form = tuple[str, str, Any]  # the field it came from, the kind, what it says


async def grammar_of(body: Sampled, served: Served) -> Grammar | None:
    """The compiled grammar, or None. Raises `ApiError` 400 about the field."""
    form = form_of(body)
    return None if form is None else await compiled(form, served)


async def compiled(form: Form, served: Served) -> Grammar:
    """The grammar of a form. Raises `ApiError` 400 about the field it came from."""
    field, kind, spec = form
    try:
        return await asyncio.to_thread(Grammar.compile, kind, spec, served.lm.tokenizer)
    except CoterieError as e:
        raise translated(e, field) from None


def form_of(body: Sampled) -> Form | None:
    """What was asked for. Raises `ApiError` where it is two things, or none that there is."""
    forms = [(name, kind, value) for name, kind in _FIELDS.items() if (value := getattr(body, name)) is not None]
    if body.structured_outputs is not None:
        forms.append(_structured(body.structured_outputs))
    if body.response_format is not None and (form := _response_format(body.response_format)) is not None:
        forms.append(form)
    if len(forms) > 1:
        first, second = forms[0][0], forms[1][0]
        raise refused(second, f"{second} is given beside {first}, expected at most one form of the answer")
    return forms[0] if forms else None


def _structured(value: dict[str, Any]) -> Form:
    given = {k: v for k, v in value.items() if v is not None}
    for key in given:
        if key not in _KINDS:
            raise _wrong("structured_outputs", f"has the key {shown(key)}", f"one of {', '.join(_KINDS)}")
    if len(given) != 1:
        raise _wrong("structured_outputs", f"has {len(given)} kinds", f"exactly one of {', '.join(_KINDS)}")
    ((key, spec),) = given.items()
    return "structured_outputs", _KINDS[key], spec


def _response_format(value: dict[str, Any]) -> Form | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "response_format", "json_object", None
    if kind != "json_schema":
        raise _wrong("response_format", f"has the type {shown(kind)}", "text, json_object or json_schema")
    schema = value.get("json_schema")
    if type(schema) is not dict:
        raise _wrong("response_format", f"has the json_schema {shown(schema)}", "an object with a name and a schema")
    name = schema.get("name")
    if name is not None and (type(name) is not str or not 1 <= len(name) <= 64):
        raise _wrong("response_format", f"has the name {shown(name)}", "text of 1 to 64 characters")
    if "schema" not in schema or type(schema["schema"]) not in (dict, bool):
        raise _wrong("response_format", f"has the schema {shown(schema.get('schema'))}", "an object")
    return "response_format", "json_schema", schema["schema"]


def _wrong(field: str, what: str, expected: str) -> ApiError:
    return refused(field, f"{field} {what}, expected {expected}")
