"""/docs: every route and field of /openapi.json as a page that loads nothing from elsewhere."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.server.docs_page import page_of, said
from coterie.server.keys import Keys, add_key
from coterie.server.openapi import document
from coterie.server.page import POLICY


def test_it_shows_every_route_and_field(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def ask() -> Any:
        async with serving() as app:
            return await asgi(app, "GET", "/docs")

    answer = asyncio.run(ask())
    page, told = answer.body.decode(), document()
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == POLICY
    for path, verbs in told["paths"].items():
        assert all(f"<code>{verb.upper()} {path}</code>" in page for verb in verbs)
    for field in told["components"]["schemas"]["ChatBody"]["properties"]:
        assert f"<code>{field}</code>" in page
    assert not re.findall(r"<script|\sstyle=|\son\w+=", page)
    assert set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page)) == {
        *("/page/icon.svg", "/page/docs.css", "/openapi.json", "/"),
    }


def test_links_lead_to_sections() -> None:
    page = page_of(document(), "http://127.0.0.1:1")
    links = re.findall(r'href="#([^"]+)"', page)
    assert links and sorted(links) == sorted(re.findall(r'<section id="([^"]+)"', page))


def test_lines_to_paste_have_a_key_where_one_is_asked_for() -> None:
    """Health needs none, and a server without keys none at all."""
    with_key = page_of(document(), "http://127.0.0.1:1", needs_key=True)
    lines = {line.split()[1].removeprefix("http://127.0.0.1:1"): line for line in re.findall(r"curl [^\n<]*", with_key)}
    header = "-H &quot;Authorization: Bearer $COTERIE_API_KEY&quot;"
    assert {path for path, line in lines.items() if header not in line} == {"/live", "/ready", "/health"}
    assert set(lines) == set(document()["paths"])
    assert "Authorization" not in page_of(document(), "http://127.0.0.1:1")


def test_a_server_with_keys_shows_them(asgi: Callable[..., Any], serving: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "anna")

    async def ask() -> Any:
        async with serving(keys=Keys(path)) as app:
            return await asgi(app, "GET", "/docs", headers={"authorization": f"Bearer {key}"})

    page = asyncio.run(ask()).body.decode()
    assert "Bearer $COTERIE_API_KEY" in page and key not in page


def test_an_address_is_text() -> None:
    assert "<script>" not in page_of(document(), "http://x/<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 128}, "integer from 1 to 128"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number above 0 to 1"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "boolean"),
        ({"enum": ["final", "stream"]}, 'one of "final", "stream"'),
        ({"type": ["object", "boolean", "null"]}, "object or boolean"),
        ({"type": "null"}, "nothing"),
        (
            {
                "anyOf": [
                    {"type": "string", "maxLength": 9},
                    {"type": "array", "maxItems": 2, "items": {"type": "string"}},
                ]
            },
            "string of at most 9, or list of at most 2 (string)",
        ),
        ({"$ref": "#/components/schemas/Two"}, "object {a: string; b: anything}"),
    ],
)
def test_a_schema_in_words(schema: dict[str, Any], words: str) -> None:
    told = {"components": {"schemas": {"Two": {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}}}}}
    assert said(told, schema) == words
