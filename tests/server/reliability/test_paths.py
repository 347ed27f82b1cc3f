"""120 paths in the place of a name: none of them is looked for on a disk, nor asked for on a network.

Ollama's CVE-2024-37032 was a digest with dots in it. Names of models are compared with a list, names of the page's
files with another.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raw_http import Reply, ask
from refusals import check_body

UP = ("..", "../", "../..", "..\\", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..%c0%af", "%252e%252e%252f", "....//")
FILES = ("etc/passwd", "proc/self/environ", "proc/self/maps", "tmp", "root/.bashrc")
PLAIN = (
    *(".", "./", "/", "//", "/.", "~", "~root", "~/.ssh/id_rsa", "$HOME", "${HOME}", "`id`", "$(id)", "*", "?", "%"),
    *(
        "con",
        "nul",
        "aux.txt",
        "C:\\Windows\\win.ini",
        "\\\\server\\share",
        "file:///etc/passwd",
        "file://localhost/etc",
    ),
    *(
        "http://127.0.0.1:1/",
        "ftp://127.0.0.1/",
        "s3://bucket",
        "hf://org/repo",
        "org/repo",
        "org/repo@main",
        "demo/..",
    ),
    *(
        "demo/../demo",
        "./demo",
        "demo/",
        "demo\x00",
        "demo\x00.json",
        "demo%00",
        "demo\n",
        "demo\r\nX: y",
        " demo",
        "demo ",
    ),
    *(
        "DEMO",
        "dеmo",
        "demo.",
        "demo::$DATA",
        "demo;ls",
        "demo|ls",
        "demo&ls",
        "demo'--",
        'demo"',
        "demo<script>",
        "{demo}",
    ),
    *(
        "models--org--repo",
        "blobs/sha256-../../x",
        "a" * 5000,
        "../" * 2000,
        "\u202egnp.omed",
        "\ufeffdemo",
        "de\u0301mo",
    ),
    *(
        "index.html/../../guard.py",
        "../guard.py",
        "../__init__.py",
        ".git/config",
        "..;/",
        "__pycache__",
        "%",
        "%zz",
        "%u002e",
    ),
)
TRICKS = (*PLAIN, *(up * 4 + "/" + file for up in UP for file in FILES), *(f"/{file}" for file in FILES))
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
BODIES = {
    "/v1/chat/completions": HELLO,
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": HELLO["messages"]},
}


def show_nothing(reply: Reply) -> None:
    """Neither a file of the system nor one of ours."""
    assert b"root:" not in reply.body and b"PATH=" not in reply.body and b"import " not in reply.body, reply.text[:300]
    assert b"[libc" not in reply.body and b"[core]" not in reply.body
    if reply.status >= 400 and reply.body:
        check_body(reply.json())


def test_there_are_120() -> None:
    assert len(set(TRICKS)) >= 120


def test_the_name_of_a_model_in_a_request_is_no_path(server: Any) -> None:
    open_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    for path, body in BODIES.items():
        for trick in TRICKS:
            reply = ask(server.url, "POST", path, {**body, "model": trick})
            assert reply.status in (400, 404), (path, trick, reply, reply.text[:200])
            show_nothing(reply)
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) <= open_files + 2
    assert not Path("demo\n").exists()


def test_the_name_of_a_model_in_a_path_is_no_path(url: str) -> None:
    for trick in TRICKS:
        for name in (quote(trick, safe=""), quote(trick)):
            reply = ask(url, "GET", f"/v1/models/{name}")
            assert reply.status in (200, 400, 404, 431), (trick, reply)
            assert reply.status != 200 or reply.json().get("id") == "demo" or "data" in reply.json(), (trick, reply)
            show_nothing(reply)


def test_the_name_of_a_file_of_the_page_is_no_path(url: str) -> None:
    for trick in TRICKS:
        for name in (quote(trick, safe="%/.\\"), quote(trick, safe="")):
            for prefix in ("/page/", "/", "/page/../"):
                reply = ask(url, "GET", prefix + name)
                is_file = reply.status == 200 and reply.headers["content-type"].split(";")[0] == "text/html"
                assert is_file or reply.status in (200, 400, 401, 404, 405, 431), (prefix, trick, reply)
                show_nothing(reply)


def test_bytes_that_no_path_has(url: str) -> None:
    for target in (
        "/page/\x00",
        "/page/a b",
        "/page/\x7f",
        "/é",
        "page",
        "*",
        "",
        "/%",
        "/%f",
        "?",
        "/?" + "a=b&" * 1000,
    ):
        reply = ask(url, "GET", target)
        assert 200 <= reply.status < 500, (target, reply)
        show_nothing(reply)
