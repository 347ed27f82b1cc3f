"""A page elsewhere that lets its name point to this machine (DNS rebinding, CVE-2024-28224), or posts from afar."""

import pytest
from raw_http import Connection, ask
from refusals import check_body, leaks

HOSTS = (
    *("", " ", "/", "?", "#", "*", ".", "-", "%", "@", ":", ":80", "evil.example", "evil.example:8000"),
    *("127.0.0.1.evil.example", "localhost.evil.example", "evil.example#127.0.0.1", "127.0.0.1@evil.example"),
    *("evil.example@127.0.0.1", "user:secret@127.0.0.1", "127.0.0.1/", "127.0.0.1?", "127.0.0.1#", "127.0.0.1\\"),
    *("localhost/../", "localhost/health", "0.0.0.0", "0", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.2"),
    *("[::]", "[::ffff:127.0.0.1]", "[::1", "::1", "[::1]x", "127.0.0.1:99999999", "127.0.0.1:abc", "127.0.0.1:-1"),
    *("127.0.0.1:", "127.0.0.1:80:80", "127.0.0.1 evil", "127.0.0.1,evil.example", "127.0.0.1;evil", "*.localhost"),
    *(
        "localhost localhost",
        "ｌocalhost",
        "127。0。0。1",
        "локалхост",
        "localhost%00",
        "%6cocalhost",
        "http://localhost",
    ),
    *("//localhost", "localhost.", ".localhost", "-localhost", "a" * 300, "localhost" + ".a" * 5000, "rebind.example."),
    *("169.254.169.254", "metadata.google.internal", "host.docker.internal", "localhost\x01", "localhost\x7f", "é"),
)
ORIGINS = (
    "http://evil.example",
    "https://localhost.evil.example",
    "null",
    "file://",
    "chrome-extension://abc",
    "*",
    "",
)
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


def test_there_are_fifty() -> None:
    assert len(set(HOSTS)) >= 50


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: ascii(host)[:40])
def test_a_host_that_is_not_ours_is_refused(url: str, host: str) -> None:
    for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/health"), ("POST", "/v1/chat/completions")):
        reply = ask(url, method, path, CHAT if method == "POST" else None, {"host": host})
        assert reply.status in (400, 403, 431), (path, reply)
        assert not leaks(reply.text)
        if reply.body.startswith(b"{"):
            check_body(reply.json())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "localhost:8000", "127.0.0.1:1"])
def test_our_own_names_are_let_in(url: str, host: str) -> None:
    assert ask(url, "GET", "/v1/models", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n Host: localhost\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nX-Forwarded-Host: localhost\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_no_host_two_hosts_and_hosts_elsewhere(url: str, head: bytes) -> None:
    with Connection(url) as connection:
        connection.send(head)
        assert connection.reply().status in (400, 403)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_elsewhere_can_neither_post_nor_read(url: str, origin: str) -> None:
    reply = ask(url, "POST", "/v1/chat/completions", CHAT, {"origin": origin})
    assert reply.status in (400, 403), reply
    for headers in ({"origin": origin}, {"origin": origin, "access-control-request-method": "POST"}):
        reply = ask(url, "OPTIONS", "/v1/chat/completions", headers=headers)
        assert "access-control-allow-origin" not in reply.headers, reply
