import socket
import threading
import time
from types import ModuleType

import pytest

from coterie.errors import RequestError
from coterie.eval.http_post import Target, Transport, TransportError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
        ("https://api.example.org/v1", "https://api.example.org/v1"),
        ("http://[::1]:9/x", "http://[::1]:9/x"),
        ("http://example.org:80", "http://example.org"),
    ],
)
def test_urls(url: str, address: str) -> None:
    assert Target.of(url).address == address


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000", "file:///etc/passwd", "ftp://x/v1", "http://", "http://x:99999/v1", "http://x:y/v1",
        "http://a b/v1", "http://x/v1\r\nHost: y", "http://[::1/v1", "http://exämple/v1",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(RequestError, match=r"expected for example http://localhost:8000/v1"):
        Target.of(url)


@pytest.mark.parametrize("url", ["http://me:secret@x/v1", "http://x/v1?key=secret", "http://x/v1#secret"])
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RequestError, match="COTERIE_JUDGE_KEY") as e:
        Target.of(url)
    assert "secret" not in str(e.value)


def test_a_key_that_is_none_is_refused_without_being_shown() -> None:
    with pytest.raises(RequestError, match="COTERIE_JUDGE_KEY") as e:
        Transport(Target.of("http://x/v1"), "sk-sec\nret")
    assert "sk-" not in str(e.value)
    assert "sk-abc" not in repr(Transport(Target.of("http://x/v1"), " sk-abc\n"))


def test_one_deadline_for_a_server_that_drips(judges: ModuleType) -> None:
    def drip(body: dict, handler: object) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    with judges.fake_judge(drip) as judge:
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"does not answer within 0\.3 s"):
            Transport(Target.of(judge.url), None).send("POST", "/chat/completions", b"{}", 0.3)
        assert time.monotonic() - started < 2


def test_close_ends_what_is_under_way(judges: ModuleType) -> None:
    gone = threading.Event()
    with judges.fake_judge(lambda body, handler: gone.wait(20) and None) as judge:
        transport, caught = Transport(Target.of(judge.url), None), []

        def ask() -> None:
            with pytest.raises(TransportError) as e:
                transport.send("POST", "/chat/completions", b"{}", 20)
            caught.append(e.value.reason)

        thread = threading.Thread(target=ask)
        thread.start()
        while not judge.asked:
            time.sleep(0.01)
        transport.close()
        thread.join(5)
        gone.set()
        assert not thread.is_alive() and "cannot be asked" in caught[0]


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\xff" * 100_000])
def test_what_is_no_http(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(said)
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        with pytest.raises(TransportError, match="cannot be asked"):
            Transport(Target.of(url), None).send("POST", "/x", b"{}", 5)
        thread.join()


def test_an_endless_answer_is_cut(judges: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.eval.http_post._LARGEST_BODY", 1 << 20)
    much = judges.fake_judge(lambda body, handler: judges.reply(handler, 200, b" " * (2 << 20)))
    with much as judge, pytest.raises(TransportError, match="more than 1 MiB"):
        Transport(Target.of(judge.url), None).send("POST", "/x", b"{}", 5)


def test_a_proxy_is_used_but_not_for_this_machine(judges: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    with judges.fake_judge(lambda body, handler: "hello") as judge:
        monkeypatch.setenv("http_proxy", judge.url)
        response = Transport(Target.of("http://judge.invalid/v1"), "k").send("POST", "/chat/completions", b"{}", 5)
        assert response.status == 200 and judge.asked[0]["path"] == "http://judge.invalid:80/v1/chat/completions"
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert Transport(Target.of(judge.url), None).send("POST", "/chat/completions", b"{}", 5).status == 200
