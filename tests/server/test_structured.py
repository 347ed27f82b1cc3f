"""Forms of an answer by all their names, at most one."""

from typing import Any

import pytest

from coterie.server.failures import ApiError
from coterie.server.schema import read
from coterie.server.schema_text import CompletionBody
from coterie.server.structured import form_of

SCHEMA = {"type": "object"}


def form(**fields: Any) -> Any:
    return form_of(read(CompletionBody, {"prompt": "a", **fields}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ("response_format", "json_object", None)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            ("response_format", "json_schema", SCHEMA),
        ),
        ({"structured_outputs": {"regex": "a+"}}, ("structured_outputs", "regex", "a+")),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, ("structured_outputs", "json_schema", SCHEMA)),
        ({"guided_json": SCHEMA}, ("guided_json", "json_schema", SCHEMA)),
        ({"guided_regex": "a"}, ("guided_regex", "regex", "a")),
        ({"guided_choice": ["a", "b"]}, ("guided_choice", "choice", ["a", "b"])),
        ({"guided_grammar": "start: x"}, ("guided_grammar", "grammar", "start: x")),
        ({"grammar": 'root ::= "a"'}, ("grammar", "grammar", 'root ::= "a"')),
        ({"json_schema": SCHEMA}, ("json_schema", "json_schema", SCHEMA)),
    ],
)
def test_what_was_asked_for(fields: dict[str, Any], expected: Any) -> None:
    assert form(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a" * 65, "schema": {}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"prolog": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_none(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        form(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
