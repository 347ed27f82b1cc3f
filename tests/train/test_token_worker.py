import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.errors import DataError, ResourceError
from coterie.tokenizer.load import load_tokenizer
from coterie.tokenizer.protocol import Tokenizer
from coterie.train.token_worker import Workers, encode_block, vocabulary_digest


@pytest.fixture
def tokenizer(tmp_path: Path, sentencepiece_bytes: bytes) -> Tokenizer:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    return load_tokenizer(tmp_path)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_blocks_come_back_in_order_and_the_workers_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    blocks = [[f"roi {i}", "é" * (i * 37 % 500), ""] for i in range(60)]
    with Workers(tmp_path, 3, vocabulary_digest(tokenizer)) as workers:
        got = list(workers.encode(iter(blocks)))
        pids = [worker.process.pid for worker in workers._workers]
    for texts, block in zip(blocks, got, strict=True):
        expected = encode_block(tokenizer, texts)
        assert block.ids.tolist() == expected.ids.tolist() and block.lengths.tolist() == expected.lengths.tolist()
        assert block.n_bytes == sum(len(text.encode()) for text in texts)
    assert not any(map(is_running, pids))


def test_blocks_are_read_a_few_ahead_not_all(tmp_path: Path, tokenizer: Tokenizer) -> None:
    n_read = 0

    def blocks() -> Iterator[list[str]]:
        nonlocal n_read
        for n_read in range(1, 101):  # noqa: B007
            yield ["roi"]

    with Workers(tmp_path, 2, vocabulary_digest(tokenizer)) as workers:
        next(workers.encode(blocks()))
    assert n_read <= 5


def test_an_error_of_the_reader_ends_the_workers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def blocks() -> Iterator[list[str]]:
        yield ["roi"] * 1000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workers(tmp_path, 2, vocabulary_digest(tokenizer)) as workers:
        list(workers.encode(blocks()))
    assert not any(is_running(worker.process.pid) for worker in workers._workers)


def test_a_worker_that_is_killed_is_a_sentence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with Workers(tmp_path, 2, vocabulary_digest(tokenizer)) as workers:
        for worker in workers._workers:
            worker.process.send_signal(signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"has ended \(signal 9; was the memory used up\?\)"):
            list(workers.encode(iter([["roi"]] * 10)))


def test_another_vocabulary_in_the_folder_is_noticed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with Workers(tmp_path, 1, bytes(32)) as workers, pytest.raises(DataError, match="has another vocabulary"):
        list(workers.encode(iter([["roi"]])))


def test_a_folder_without_a_tokenizer_ends_the_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Workers(tmp_path, 1, bytes(32)) as workers, pytest.raises(ResourceError, match="exit code 1"):
        list(workers.encode(iter([["roi"]])))
    assert "has no tokenizer" in capfd.readouterr().err


def test_a_worker_whose_parent_is_gone_says_nothing(
    tmp_path: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (b"", b"\x01", bytes([1, *bytes(7), 9, *bytes(7)]) + b"half"):
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "coterie.train.token_worker", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        worker.communicate(sent, timeout=60)
        assert worker.returncode == 0
    assert capfd.readouterr().err == ""
