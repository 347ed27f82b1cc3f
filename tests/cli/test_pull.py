"""`pull` against a stand-in for the hub: what is asked for, refused, taken up again, checked."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from coterie.checkpoint.hub import cached_snapshot, find_model
from coterie.cli.main import main
from coterie.errors import CheckpointError, DownloadError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/model"


class Hub:
    """The hub's routes that huggingface-hub uses, over a dictionary of files; every GET and HEAD is remembered."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.claimed_sha256: dict[str, str] = {}
        self.claimed_size: dict[str, int] = {}
        self.cut: dict[str, list[int]] = {}  # after so many bytes of the body the line drops, once for each entry
        self.is_gated = False
        self.tells_sizes = True
        self.status: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def sha256(self, name: str) -> str:
        return self.claimed_sha256.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        if self.status is not None:
            self.send(request, self.status)
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/v1"):
            self.send(request, 200, json.dumps(self.describe()).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/"):
            is_ours = path.startswith(f"/api/models/{NAME}/")
            self.send(request, 404, headers={"X-Error-Code": "RevisionNotFound" if is_ours else "RepoNotFound"})
        elif self.is_gated:
            self.send(request, 401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif match := re.fullmatch(rf"/{NAME}/resolve/{COMMIT}/(.+)", path):
            self.send_file(request, match[1])
        else:
            self.send(request, 404, headers={"X-Error-Code": "EntryNotFound"})

    def describe(self) -> dict[str, Any]:
        siblings = []
        for name, body in self.files.items():
            size = self.claimed_size.get(name, len(body))
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": hashlib.sha1(body).hexdigest()}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                entry["lfs"] = {"size": size, "sha256": self.sha256(name), "pointerSize": 130}
            siblings.append(entry if self.tells_sizes else {"rfilename": name})
        return {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        body, first = self.files[name], 0
        headers = {"ETag": f'"{self.sha256(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            first = int(match[1])
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        cut = self.cut.get(name, []) if request.command == "GET" else []
        self.send(request, 206 if first else 200, body[first:], headers, cut.pop(0) if cut else None)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:cut])
        if cut is not None:
            request.close_connection = True

    def fetched(self) -> list[str]:
        """Names of the files whose bytes or headers were asked for."""
        return sorted({path.partition(COMMIT + "/")[2] for _, path, _ in self.requests if "/resolve/" in path})


FILES = {
    "config.json": b'{"model_type": "mixtral"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    "model-00002-of-00002.safetensors": b"\1" * 5000,
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"\2" * 7000,
    "tokenizer.model": b"pieces",
    "README.md": b"# model",
    "pytorch_model.bin": b"pickle",
    "consolidated.00.pt": b"pickle",
    "optimizer.pth": b"pickle",
    "model.ckpt": b"pickle",
    "tf_model.h5": b"pickle",
    "flax_model.msgpack": b"pickle",
    "modeling_custom.py": b"import os",
    "onnx/config.json": b"{}",
    ".gitattributes": b"",
}
WANTED = sorted([*list(FILES)[:4], "tokenizer.model", "README.md"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub(FILES)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("coterie.checkpoint.transfer.time.sleep", lambda seconds: None)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def pull(capsys: pytest.CaptureFixture[str], *args: str, name: str = NAME) -> tuple[int, str, str]:
    code = main(["pull", name, *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_only_weights_json_and_tokenizer_are_fetched_never_a_pickle(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = pull(capsys)
    assert code == 0, err
    folder = Path(out.strip())
    assert hub.fetched() == WANTED
    assert sorted(p.name for p in folder.iterdir()) == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    assert "consolidated.safetensors: the same weights" in err and "pytorch_model.bin" in err
    assert cached_snapshot(NAME) == folder == find_model(NAME)
    assert all(NAME in path for _, path, _ in hub.requests)  # and nobody is told who asks


def test_a_second_pull_fetches_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    pull(capsys)
    hub.requests.clear()
    code, out, _ = pull(capsys, "--json")
    document = json.loads(out)
    assert code == 0 and hub.fetched() == [] and len(hub.requests) == 1
    assert document["commit"] == COMMIT and sorted(f["name"] for f in document["files"]) == WANTED


def test_a_file_that_was_changed_on_disk_is_fetched_again(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(pull(capsys)[1].strip())
    victim = (folder / "model-00002-of-00002.safetensors").resolve()
    victim.write_bytes(b"\3" + victim.read_bytes()[1:])
    hub.requests.clear()
    assert pull(capsys)[0] == 0
    assert hub.fetched() == ["model-00002-of-00002.safetensors"] and victim.read_bytes() == b"\1" * 5000


def test_a_broken_transfer_goes_on_where_it_stopped(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.cut[name] = [3000, 4000]
    code, out, err = pull(capsys)
    assert code == 0, err
    assert (Path(out.strip()) / name).read_bytes() == FILES[name]
    assert [r for m, p, r in hub.requests if p.endswith(name) and m == "GET"] == [None, "bytes=3000-", "bytes=7000-"]


def test_the_next_pull_takes_up_what_an_earlier_one_left(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.cut[name] = [3000, *[0] * 20]
    code, _, err = pull(capsys)
    assert code == 2 and "what has arrived is kept" in err and cached_snapshot(NAME) is not None
    hub.cut.clear()
    hub.requests.clear()
    code, out, err = pull(capsys)
    assert code == 0, err
    assert [r for m, p, r in hub.requests if p.endswith(name) and m == "GET"] == ["bytes=3000-"]
    assert (Path(out.strip()) / name).read_bytes() == FILES[name]


def test_a_wrong_sha256_is_refused_and_thrown_away(
    hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "model-00002-of-00002.safetensors"
    hub.claimed_sha256[name] = "0" * 64
    code, out, err = pull(capsys)
    assert code == 2 and out == "" and f"{name} of {NAME} arrived damaged" in err
    assert not list(tmp_path.rglob(name)) and not list(tmp_path.rglob("0" * 64 + "*[!k]"))


def test_a_disk_that_is_too_small_is_noticed_before_any_download(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.claimed_size["model-00001-of-00002.safetensors"] = 10**18
    code, _, err = pull(capsys)
    assert code == 2 and "needs 1,000,000,000.0 GB more" in err and "HF_HOME" in err and hub.fetched() == []


def test_sizes_and_hashes_come_from_the_files_headers_where_the_list_has_none(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.tells_sizes = False
    code, _, err = pull(capsys)
    assert code == 0 and f"6 files, {sum(len(FILES[n]) for n in WANTED) / 1000:.1f} kB" in err
    assert [m for m, p, _ in hub.requests if p.endswith(".bin")] == []


def test_a_gated_model_says_how_to_log_in(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.is_gated = True
    code, _, err = pull(capsys)
    assert code == 2 and "is gated" in err and "hf auth login" in err and f"{hub.endpoint}/{NAME}" in err


@pytest.mark.parametrize(("status", "words"), [(401, "hf auth login"), (403, "hf auth login"), (404, "check the name")])
def test_a_refusal_of_the_hub_is_one_sentence(
    status: int, words: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = status
    code, _, err = pull(capsys)
    assert code == 2 and words in err and err.count("\n") == 1


def test_an_unknown_repository_or_revision_is_named(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = pull(capsys, name="org/other")
    assert code == 2 and "shows no org/other" in err
    code, _, err = pull(capsys, "--revision", "v9")
    assert code == 2 and "no revision 'v9'" in err
    code, out, err = pull(capsys, "--revision", "v1")
    assert code == 0 and cached_snapshot(NAME, "v1") == Path(out.strip()), err


def test_a_hub_that_is_not_there_is_one_sentence(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = pull(capsys)
    assert code == 2 and "http://127.0.0.1:9 cannot be reached" in err and err.count("\n") == 1


def test_offline_is_obeyed(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, err = pull(capsys)
    assert code == 2 and out == "" and "HF_HUB_OFFLINE" in err and hub.requests == []


@pytest.mark.parametrize(
    "name", ["../x", "a b/c", "model", "a/b/c", "a/..", "-a/b", "a/b.", "https://x/y", "a--b/c", ""]
)
def test_a_bad_name_is_refused_before_the_hub_is_asked(name: str, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = pull(capsys, name="./" + name if name.startswith("-") else name)
    assert code == 2 and "ORG/NAME" in err and hub.requests == []


@pytest.mark.parametrize("revision", ["../x", "a b", "-x", ""])
def test_a_bad_revision_is_refused(revision: str, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = pull(capsys, f"--revision={revision}")
    assert code == 2 and "revision" in err and hub.requests == []


def test_a_gguf_file_comes_only_when_named(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files |= {"model.Q8_0.gguf": b"GGUF" * 100, "model.Q4_0.gguf": b"GGUF"}
    assert pull(capsys)[0] == 0 and not any(name.endswith(".gguf") for name in hub.fetched())
    hub.requests.clear()
    code, out, _ = pull(capsys, "--file", "model.Q8_0.gguf")
    assert code == 0 and Path(out.strip()).read_bytes() == b"GGUF" * 100 and hub.fetched() == ["model.Q8_0.gguf"]
    assert find_model(f"{NAME}:model.Q8_0.gguf") == Path(out.strip())
    assert main(["pull", f"{NAME}:model.Q8_0.gguf"]) == 0 and capsys.readouterr().out == out
    code, _, err = pull(capsys, "--file", "model.Q8.gguf")
    assert code == 2 and "did you mean 'model.Q8_0.gguf'?" in err
    for file in ("pytorch_model.bin", "../x.gguf"):
        assert pull(capsys, "--file", file)[0] == 2
    assert "pytorch_model.bin" not in hub.fetched()
    code, _, err = pull(capsys, "--file", "model.Q8_0.gguf", name=f"{NAME}:model.Q4_0.gguf")
    assert code == 2 and "two GGUF files are named" in err


def test_all_parts_of_a_split_gguf_file_come(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [f"x.Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub.files |= dict.fromkeys([*parts, "x.Q4_0-00001-of-00003.gguf", "x.Q8_0.gguf"], b"GGUF")
    code, out, _ = pull(capsys, "--file", parts[0])
    assert code == 0 and Path(out.strip()).name == parts[0]
    assert sorted(name for name in hub.fetched() if name.endswith(".gguf")) == parts


def test_a_repository_of_pickles_only_is_refused(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    code, _, err = pull(capsys)
    assert code == 2 and "only pickles (pytorch_model.bin)" in err and hub.fetched() == []


def test_a_model_that_is_not_here_says_what_would_fetch_it(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"coterie pull org/absent"):
        find_model("org/absent")
    for source in (str(tmp_path / "no"), "~nobody-here/model", "no such", "a\0b", ""):
        with pytest.raises(CheckpointError):
            find_model(source)
    assert find_model(str(tmp_path)) == tmp_path and hub.requests == []
