"""The files of the chat page: their headers, their names and nothing else, and what must not be in them."""

import asyncio
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from coterie import load
from coterie.server.app import build_app
from coterie.server.keys import Keys, add_key
from coterie.server.models import Models
from coterie.server.page import POLICY, read_page
from coterie.server.settings import Settings

PAGE = read_page()
TEXTS = {name: file.body.decode() for name, file in PAGE.items()}


@pytest.fixture(scope="module")
def get(asgi: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`get(path, headers)` -> Answer, of a server that wants a key and has not loaded its model."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    add_key(keys, "me")
    settings = Settings(access_log=False)
    app = build_app(Models({"demo": "demo"}, load, settings), settings, Keys(keys))

    def ask(path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
        return asyncio.run(asgi(app, method, path, headers=headers))

    return ask


def test_headers(get: Callable[..., Any]) -> None:
    for path, kind in (("/", "text/html"), ("/page/main.js", "text/javascript"), ("/page/icon.svg", "image/svg+xml")):
        answer = get(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        assert "access-control-allow-origin" not in answer.headers and "set-cookie" not in answer.headers
        assert get(path, method="HEAD").status == 200
    directives = dict(d.strip().split(" ", 1) for d in POLICY.split(";"))
    assert directives["default-src"] == "'self'" and directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in POLICY and "*" not in POLICY and "data:" not in POLICY


def test_a_browser_that_has_a_file_is_told_so(get: Callable[..., Any]) -> None:
    tag = get("/page/style.css").headers["etag"]
    again = get("/page/style.css", {"if-none-match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert get("/page/style.css", {"if-none-match": '"other"'}).status == 200


def test_only_known_names(get: Callable[..., Any]) -> None:
    names = [
        *("nothing.js", "..", "../page.py", "../../errors.py", "./main.js", "main.js/", "/main.js", "main.js%00", ""),
        *("main.js/../main.js", "..%2fpage.py", "%2e%2e/page.py", "..\\page.py", "MAIN.JS", "main.js;.css", "~/x"),
        *("%252e%252e%252fpage.py", "..%c0%afpage.py", "file:///etc/passwd", "page.py", "__init__.py", "C:main.js"),
    ]
    for name in names:
        answer = get("/page/" + name)
        assert answer.status in (401, 404), name
        assert b"import" not in answer.body and "text/html" not in answer.headers["content-type"], name
    assert get("/page/main.js", method="POST").status in (401, 403, 404, 405)


def test_every_reference_is_to_a_file_that_is_there() -> None:
    references = re.findall(r'(?:href|src)="([^"#]+)"', TEXTS["index.html"])
    assert {"page/main.js", "page/style.css", "page/icon.svg"} <= set(references)
    for reference in references:
        folder, _, name = reference.partition("/")
        assert folder == "page" and name in PAGE, reference
    for name, text in TEXTS.items():
        for imported in re.findall(r'from "([^"]+)"', text) if name.endswith(".js") else []:
            assert imported.startswith("./") and imported[2:] in PAGE, (name, imported)
    used = {name for text in TEXTS.values() for name in re.findall(r"[\"/](\w+\.(?:js|css|svg))\"", text)}
    assert used == set(PAGE) - {"index.html", "docs.css"}  # that one is of /docs


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inside.append(data)


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    reader = Reader()
    reader.feed(TEXTS["index.html"])
    assert not reader.inside
    for tag, attributes in reader.found:
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert tag != "script" or attributes["src"]
    for name, text in TEXTS.items():
        outside = [u for u in re.findall(r"https?://[^\s\"'`<>)]+", text) if u != "http://www.w3.org/2000/svg"]
        assert not [u for u in outside if "[" not in u], name  # patterns of the markdown reader have brackets


def test_scripts_make_no_markup_out_of_text() -> None:
    """Trusted types would stop it in the browser; it is not even there."""
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextual|"
        r"srcdoc|setHTML"
    )
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            assert not re.search(sinks, text), name
            assert not re.search(r"set(?:Timeout|Interval)\(\s*[\"'`]|\.style\s*=|\"style\"|cookie", text), name
        elif name.endswith(".css"):
            assert "url(" not in text and "@import" not in text, name


def test_what_scripts_look_for_is_in_the_page() -> None:
    reader = Reader()
    reader.feed(TEXTS["index.html"])
    assert len(reader.ids) == len(set(reader.ids))
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= set(reader.ids), name
            icons = re.findall(r'(?:icon|button)\("([\w-]+)"', text)
            assert {f"i-{i}" for i in icons} <= set(reader.ids), name


def test_buttons_have_names() -> None:
    reader = Reader()
    reader.feed(TEXTS["index.html"])
    buttons = [a for tag, a in reader.found if tag == "button"]
    assert len(buttons) > 10
    assert all(a.get("aria-label") or a.get("class") == "link" for a in buttons)
    assert ("html", {"lang": "en"}) in reader.found


def test_size() -> None:
    assert sum(len(file.body) for file in PAGE.values()) < 150_000
    assert sum(text.count("\n") for text in TEXTS.values()) < 3000
