import gzip
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from coterie.errors import DataError
from coterie.train.data import Batches, TokenFile, read_mixture, read_texts, tokenize_file


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


def files(*lengths: int) -> list[TokenFile]:
    ends = np.cumsum((0, *lengths))
    return [
        TokenFile(f"f{i}", np.arange(a, b, dtype=np.uint32), 1) for i, (a, b) in enumerate(itertools.pairwise(ends))
    ]


def test_every_window_comes_once_before_any_comes_twice() -> None:
    batches = Batches(files(64, 32), [], [(0, 8)], steps=6, tokens=16, bos=999, seed=1)
    windows = [int(t[0]) for step in range(6) for t in batches.batch(step)[1]]
    assert len(windows) == 12 == len(set(windows))


def test_rows_start_with_bos_and_targets_are_the_next_ids() -> None:
    ids_BS, targets_BS = Batches(files(64), [], [(0, 8)], 4, 16, 999, 0).batch(2)
    assert ids_BS.shape == targets_BS.shape == (2, 8)
    assert (ids_BS[:, 0] == 999).all() and torch.equal(ids_BS[:, 1:], targets_BS[:, :-1])


def test_phases_keep_the_tokens_of_a_step() -> None:
    batches = Batches(files(256), [], [(0, 8), (3, 32)], 5, 32, 0, 0)
    assert [tuple(batches.batch(s)[0].shape) for s in range(5)] == [(4, 8)] * 3 + [(1, 32)] * 2


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def make(seed: int) -> Batches:
        return Batches(files(64, 64), [1.0, 3.0], [(0, 8)], 50, 16, 0, seed)

    first, again, other = make(5), make(5), make(6)
    again.batch(3)
    assert torch.equal(first.batch(40)[1], again.batch(40)[1])
    assert any(not torch.equal(first.batch(s)[1], other.batch(s)[1]) for s in range(5))


def test_weights_are_shares_of_the_rows() -> None:
    batches = Batches(files(80, 80), [1.0, 3.0], [(0, 8)], 500, 16, 0, 0)
    from_second = sum(int((batches.batch(s)[1][:, 0] >= 80).sum()) for s in range(500))
    assert 0.7 < from_second / 1000 < 0.8


def test_a_file_shorter_than_a_row_is_named() -> None:
    with pytest.raises(DataError, match="f0 has 5 tokens, fewer than one sequence of 8"):
        Batches(files(5), [], [(0, 8)], 4, 16, 0, 0)


def test_tokenised_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl.gz", []
    with gzip.open(path, "wt") as out:
        out.write(json.dumps({"text": "ab"}) + "\n" + json.dumps({"text": "é"}) + "\n")
    for _ in range(2):
        file = tokenize_file(path, ByteTokenizer(), tmp_path / "cache", lambda done, total: seen.append(done))
        assert file.name == "a" and file.n_bytes == 4
        assert file.ids.tolist() == [97, 98, 256, 195, 169, 256]
    assert seen == [2, 4]
    path.write_bytes(gzip.compress(b'{"text": "c"}\n'))
    assert tokenize_file(
        path, ByteTokenizer(), tmp_path / "cache", lambda done, total: seen.append(done)
    ).ids.tolist() == [99, 256]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', "line 2"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.jsonl", b"{", "line 1"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1"),
        ("a.jsonl", b"\xff\xfe\n", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n')[:-9], "cannot be read"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.txt", b"\xff", "cannot be read"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        list(read_texts(tmp_path / name))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for path, sentence in ((tmp_path / "none.jsonl", "not a file"), (tmp_path / "empty.jsonl", "holds no text")):
        with pytest.raises(DataError, match=sentence):
            tokenize_file(path, ByteTokenizer(), tmp_path / "cache", lambda done, total: None)


def test_a_text_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="holds no text"):
        tokenize_file(tmp_path / "a.txt", ByteTokenizer(), tmp_path / "cache", lambda done, total: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_ctrl_c_while_tokenising_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_file(tmp_path / "a.jsonl", ByteTokenizer(), tmp_path / "cache", interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_of_one_name_and_size_in_two_folders_are_two(tmp_path: Path) -> None:
    rows = []
    for letter in "ab":
        path = tmp_path / letter / "t.txt"
        path.parent.mkdir()
        path.write_text(letter)
        os.utime(path, ns=(1, 1))
        rows.append(tokenize_file(path, ByteTokenizer(), tmp_path / "cache", lambda done, total: None).ids.tolist())
    assert rows == [[97, 256], [98, 256]]


def test_a_vocabulary_without_an_end_adds_none(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    tokenizer.eos_id = None
    (tmp_path / "a.txt").write_text("hi")
    assert tokenize_file(tmp_path / "a.txt", tokenizer, tmp_path, lambda done, total: None).ids.tolist() == [104, 105]


def test_a_mixture_repeats_a_file_as_its_weight_asks(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    for path, text in zip(paths, ("aaaa", "bb", "cccc"), strict=True):
        path.write_text(text)
    assert list(read_mixture(paths, [])) == ["aaaa", "bb", "cccc"]
    assert list(read_mixture(paths, [0.1, 0.1, 0.0])) == ["aaaa", "bb", "bb"]
    assert len(list(read_mixture(paths, [1.0, 99.0, 1.0]))) == 1 + 16 + 1


def test_rows_say_where_the_tokens_of_a_step_come_from() -> None:
    files = [
        TokenFile("a", np.arange(10, 110, dtype=np.uint32), 1),
        TokenFile("b", np.arange(500, 600, dtype=np.uint32), 1),
    ]
    batches = Batches(files, [], [(0, 8), (2, 16)], 4, 32, 1, 0)
    for step in range(4):
        ids = {"a": files[0].ids, "b": files[1].ids}
        rows, (_, targets_BS) = batches.rows(step), batches.batch(step)
        assert len(rows) == len(targets_BS) and {r["tokens"] for r in rows} == {8 if step < 2 else 16}
        for row, targets in zip(rows, targets_BS.tolist(), strict=True):
            assert ids[row["file"]][row["first_token"] :][: row["tokens"]].tolist() == targets
