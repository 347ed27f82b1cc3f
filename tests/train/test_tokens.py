import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coterie.checkpoint import atomic
from coterie.errors import DataError, ResourceError
from coterie.tokenizer.load import load_tokenizer
from coterie.train.tokens import Joined, TokenFile, tokenize_path


class ByteTokenizer:
    """Every byte is a token; 256 ends a text."""

    kind, vocab_size, bos_id, eos_id = "bytes", 258, 257, 256

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [257] * bos + list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def piece(self, i: int) -> str:
        return f"<{i}>"

    def control_id(self, text: str) -> int | None:
        return None


def ignore(done: int, total: int) -> None:
    pass


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.train.tokens._SHARD", 100)
    monkeypatch.setattr("coterie.train.tokens._BLOCK", 30)


def test_tokenised_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl.gz", []
    path.write_bytes(gzip.compress('{"text": "ab"}\n{"text": "é"}\n'.encode()))
    for _ in range(2):
        file = tokenize_path(path, ByteTokenizer(), tmp_path / "cache", lambda *n: seen.append(n))
        assert file.name == "a" and file.n_bytes == 4
        assert file.ids[:].tolist() == [97, 98, 256, 195, 169, 256] and file.ends[:].tolist() == [3, 6]
    size = path.stat().st_size
    assert seen == [(size, size)] * 3  # two texts and the end, of the first time alone
    path.write_bytes(gzip.compress(b'{"text": "c"}\n'))
    file = tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore)
    assert file.ids[:].tolist() == [99, 256]


def test_another_vocabulary_is_another_array(tmp_path: Path) -> None:
    class Upper(ByteTokenizer):
        def piece(self, i: int) -> str:
            return f"<{i}!>"

        def encode(self, text: str, *, bos: bool = False) -> list[int]:
            return super().encode(text.upper())

    path = write_lines(tmp_path / "a.jsonl", ["ab"])
    for tokenizer, ids in (
        (ByteTokenizer(), [97, 98, 256]),
        (Upper(), [65, 66, 256]),
        (ByteTokenizer(), [97, 98, 256]),
    ):
        assert tokenize_path(path, tokenizer, tmp_path / "cache", ignore).ids[:].tolist() == ids


def test_a_folder_of_files_is_one_row_of_documents_in_shards(tmp_path: Path, small_shards: None) -> None:
    texts = ["x" * n for n in (50, 3, 0, 70, 20, 200, 1, 2, 3)]
    (tmp_path / "text").mkdir()
    write_lines(tmp_path / "text" / "b.jsonl", texts[4:])
    write_lines(tmp_path / "text" / "a.jsonl", texts[:4])
    file = tokenize_path(tmp_path / "text", ByteTokenizer(), tmp_path / "cache", ignore)
    whole = [i for text in texts for i in (*text.encode(), 256)]
    assert file.name == "text" and len(file.ids) == len(whole) and file.ids[:].tolist() == whole
    assert file.ends[:].tolist() == np.cumsum([len(text) + 1 for text in texts]).tolist()
    assert file.n_bytes == sum(map(len, texts))
    folder = next((tmp_path / "cache").iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["is_complete"] and len(manifest["shards"]) == 3
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json", *(f"0000{i}.{kind}" for i in range(3) for kind in ("ids", "ends"))
    }  # fmt: skip
    assert file.documents(50, 60).tolist() == [0] + [1] * 4 + [2] + [3] * 4
    assert file.documents(0, 3).tolist() == [0, 0, 0]


def test_processes_give_what_one_process_gives(tmp_path: Path, small_shards: None, sentencepiece_bytes: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    tokenizer = load_tokenizer(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", [f"Le roi {i} et la reine {i * i} d'été.\n" * (i % 5) for i in range(200)])
    serial = tokenize_path(path, tokenizer, tmp_path / "one", ignore)
    parallel = tokenize_path(path, tokenizer, tmp_path / "three", ignore, source=tmp_path, workers=3)
    assert serial.ids[:].tolist() == parallel.ids[:].tolist() and serial.ends[:].tolist() == parallel.ends[:].tolist()
    one, three = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "three"))
    assert len(one) > 10 and one == three
    assert serial.digest == parallel.digest != ""


def test_wide_vocabularies_take_four_bytes_an_id(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text: str, *, bos: bool = False) -> list[int]:
            return [65_999 + i for i in text.encode()]

    path = write_lines(tmp_path / "a.jsonl", ["a"])
    assert tokenize_path(path, Wide(), tmp_path, ignore).ids[:].tolist() == [66_096, 256]


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt", "blank.jsonl"])
def test_no_text_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": ""}\n' if name == "blank.jsonl" else "")
    with pytest.raises(DataError, match="holds no text; give it some"):
        tokenize_path(tmp_path / name, ByteTokenizer(), tmp_path / "cache", ignore)
    assert not any((tmp_path / "cache").rglob("*"))


def test_a_bad_line_leaves_nothing(tmp_path: Path, small_shards: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["x" * 90] * 10)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match="line 11"):
        tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore)
    assert not any((tmp_path / "cache").rglob("*"))


def test_ctrl_c_keeps_whole_shards_and_goes_on_to_the_same_bytes(tmp_path: Path, small_shards: None) -> None:
    path = write_lines(tmp_path / "a.jsonl", [chr(97 + i) * 40 for i in range(20)])
    whole = tokenize_path(path, ByteTokenizer(), tmp_path / "whole", ignore)
    n_seen = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_path(path, ByteTokenizer(), tmp_path / "cut", interrupt)
    folder = next((tmp_path / "cut").iterdir())
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json", *(f"0000{i}.{kind}" for i in range(3) for kind in ("ids", "ends"))
    }  # fmt: skip
    (folder / "00003.ids.partial-12345678").write_bytes(b"half")  # as a kill would leave it
    (folder / "00003.ids").write_bytes(b"not in the manifest")
    asked = []

    class Counting(ByteTokenizer):
        def encode(self, text: str, *, bos: bool = False) -> list[int]:
            asked.append(text)
            return super().encode(text)

    again = tokenize_path(path, Counting(), tmp_path / "cut", ignore)
    assert len(asked) == 11 and again.digest == whole.digest
    before, after = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("whole", "cut"))
    assert before == after


def test_ctrl_c_before_the_first_shard_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_path(write_lines(tmp_path / "a.jsonl", ["a"]), ByteTokenizer(), tmp_path / "cache", interrupt)
    assert not any((tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("damage", ["short", "gone", "flipped", "manifest", "format"])
def test_shards_that_do_not_fit_the_manifest_are_made_again(tmp_path: Path, small_shards: None, damage: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["x" * 90] * 5)
    expected = tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore).ids[:].tolist()
    folder = next((tmp_path / "cache").iterdir())
    if damage == "short":
        os.truncate(folder / "00001.ids", 10)
    elif damage == "gone":
        (folder / "00000.ends").unlink()
    elif damage == "flipped":
        ids = bytearray((folder / "00001.ids").read_bytes())
        ids[7] ^= 0xFF
        (folder / "00001.ids").write_bytes(ids)
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"format": 1', '"format": 0')
        )
    assert tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore).ids[:].tolist() == expected


@pytest.mark.parametrize("allowed", range(6))
def test_a_full_disk_is_a_sentence_and_nothing_half_written_is_used(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    path, synced = write_lines(tmp_path / "a.jsonl", ["x" * 90] * 5), []

    def full(fd: int) -> None:
        synced.append(fd)
        if len(synced) > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(ResourceError, match="cannot be written: the disk is full"):
            tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore)
    assert not list((tmp_path / "cache").rglob("*.partial-*"))
    file = tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore)
    assert file.ids[:].tolist() == ([120] * 90 + [256]) * 5


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(DataError, match="has changed while it was read"):
        tokenize_path(path, ByteTokenizer(), tmp_path / "cache", lambda done, total: os.utime(path, ns=(1, 1)))
    assert not any((tmp_path / "cache").rglob("*"))


def test_files_of_one_name_and_size_in_two_folders_are_two(tmp_path: Path) -> None:
    rows = []
    for letter in "ab":
        path = tmp_path / letter / "t.txt"
        path.parent.mkdir()
        path.write_text(letter)
        os.utime(path, ns=(1, 1))
        rows.append(tokenize_path(path, ByteTokenizer(), tmp_path / "cache", ignore).ids[:].tolist())
    assert rows == [[97, 256], [98, 256]]


def test_a_vocabulary_without_an_end_adds_none(tmp_path: Path) -> None:
    class Endless(ByteTokenizer):
        eos_id = None  # type: ignore[assignment]

    file = tokenize_path(write_lines(tmp_path / "a.jsonl", ["hi", "", "o"]), Endless(), tmp_path, ignore)
    assert file.ids[:].tolist() == [104, 105, 111] and file.ends[:].tolist() == [2, 2, 3]
    assert file.documents(0, 3).tolist() == [0, 0, 2]


def test_a_killed_process_leaves_what_the_next_one_can_use(tmp_path: Path, sentencepiece_bytes: bytes) -> None:
    """Killed with its workers, which end by themselves."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    path = write_lines(tmp_path / "a.jsonl", [f"Le roi et la reine {i}. " * 20 for i in range(3000)])
    script = (
        "import sys; from pathlib import Path; from coterie.tokenizer.load import load_tokenizer\n"
        "from coterie.train import tokens; tokens._SHARD = 1 << 16; tokens._BLOCK = 1 << 14\n"
        "p = Path(sys.argv[1]); t = load_tokenizer(p)\n"
        "tokens.tokenize_path(p / 'a.jsonl', t, p / 'cache', lambda d, n: None, source=p, workers=2)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    tokenizer = load_tokenizer(tmp_path)
    folder = next((tmp_path / "cache").iterdir())
    n_kept = len(json.loads((folder / "manifest.json").read_text())["shards"])
    assert n_kept >= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coterie.train.tokens._SHARD", 1 << 16)
        patch.setattr("coterie.train.tokens._BLOCK", 1 << 14)
        again = tokenize_path(path, tokenizer, tmp_path / "cache", ignore)
        whole = tokenize_path(path, tokenizer, tmp_path / "whole", ignore)
    assert again.digest == whole.digest and np.array_equal(again.ids[:], whole.ids[:])


def test_joined_arrays_read_as_one() -> None:
    arrays = [np.arange(0, 3), np.arange(3, 4), np.arange(4, 9)]
    joined = Joined(arrays)
    assert len(joined) == 9 and list(joined) == list(range(9))
    for start in range(10):
        for stop in range(start, 11):
            assert joined[start:stop].tolist() == list(range(9))[start:stop]
    with pytest.raises(IndexError):
        joined[9]


def test_documents_of_a_stretch() -> None:
    file = TokenFile("a", np.zeros(9, dtype=np.uint32), 1, np.array([3, 5, 9]))
    assert file.documents(2, 7).tolist() == [0, 1, 1, 2, 2]
    assert TokenFile("a", np.zeros(9, dtype=np.uint32), 1).documents(2, 5).tolist() == [0, 0, 0]
