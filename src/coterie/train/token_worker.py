"""Tokenising in processes of our own, each with its tokenizer, fed with blocks of texts; the order stays.

A worker is `python -m coterie.train.token_worker TOKENIZER`, not a fork (the parent has threads) and not
`multiprocessing` (whose children run the parent's main script again). It answers on its standard output and ends when
its input does, so a parent that is killed leaves none behind. All numbers are little-endian:
    first      the sha256 of the vocabulary it has loaded (32 bytes)
    request    n, then n lengths in bytes (all 8 bytes), then the texts as UTF-8
    answer     n, n lengths in tokens, then the ids in 4 bytes each; or -1, a length, and a message as UTF-8
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from coterie.errors import CoterieError, DataError, ResourceError
from coterie.tokenizer.load import load_tokenizer
from coterie.tokenizer.protocol import Tokenizer

__all__ = ["Block", "Workers", "encode_block", "vocabulary_digest"]

_AHEAD = 2  # blocks for each worker that are read before they are needed


class Block(NamedTuple):
    """The tokens of some documents, one after the other: ids uint32, how many each has int64, their bytes of text."""

    ids: np.ndarray
    lengths: np.ndarray
    n_bytes: int


def vocabulary_digest(tokenizer: Tokenizer) -> bytes:
    """sha256 of all pieces and of the end: what the ids of a text depend on."""
    pieces = "\n".join(tokenizer.piece(i) for i in range(tokenizer.vocab_size))
    return hashlib.sha256(f"{tokenizer.eos_id} {pieces}".encode(errors="surrogatepass")).digest()


def encode_block(tokenizer: Tokenizer, texts: list[str]) -> Block:
    """Each text's ids and, where the vocabulary has one, EOS."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    rows = [np.array(tokenizer.encode(text) + end, dtype="<u4") for text in texts]
    lengths = np.array([len(row) for row in rows], dtype="<i8")
    return Block(np.concatenate(rows), lengths, sum(len(text.encode()) for text in texts))


class Workers:
    """`with Workers(folder of the tokenizer, n, digest) as workers: workers.encode(blocks)` -> `Block`s in order.

    `ResourceError` where a worker ends before its work does, `DataError` where it loads another vocabulary.
    """

    def __init__(self, tokenizer: Path, n: int, digest: bytes):
        self._tokenizer, self._digest = tokenizer, digest
        self._n, self._workers, self._idle = n, list[_Worker](), SimpleQueue[_Worker]()
        self._threads = ThreadPoolExecutor(n, "tokenise")  # each waits for one worker

    def __enter__(self) -> "Workers":
        try:
            for _ in range(self._n):
                self._workers.append(_Worker(self._tokenizer, self._digest))
                self._idle.put(self._workers[-1])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def encode(self, blocks: Iterator[list[str]]) -> Iterator[Block]:
        """The blocks of texts as tokens, in the same order; a few are read ahead."""
        waiting: deque[Future[Block]] = deque()
        for texts in blocks:
            waiting.append(self._threads.submit(self._encode, texts))
            if len(waiting) > _AHEAD * self._n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, texts: list[str]) -> Block:
        worker = self._idle.get()
        try:
            return worker.encode(texts)
        finally:
            self._idle.put(worker)

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    """The parent's end of one worker."""

    def __init__(self, tokenizer: Path, digest: bytes):
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coterie.train.token_worker", str(tokenizer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout
        self._tokenizer, self._digest, self._is_checked = tokenizer, digest, False

    def encode(self, texts: list[str]) -> Block:
        data = [text.encode() for text in texts]
        try:
            self._check()
            _write(self._requests, [len(data), *map(len, data)], b"".join(data))
            return _read_answer(self._answers, sum(map(len, data)))
        except (BrokenPipeError, EOFError):
            code = self.process.wait()
            how = f"signal {-code}; was the memory used up?" if code < 0 else f"exit code {code}"
            raise ResourceError(
                f"a process that tokenises has ended ({how}); the same command goes on where it came to"
            ) from None

    def close(self) -> None:
        self.process.wait()
        for pipe in (self._requests, self._answers):
            try:
                pipe.close()
            except OSError:  # what was not sent yet goes nowhere
                pass

    def _check(self) -> None:
        if not self._is_checked and _read(self._answers, len(self._digest)) != self._digest:
            raise DataError(f"{self._tokenizer} has another vocabulary than a moment ago; run it again")
        self._is_checked = True


def _read_answer(pipe: IO[bytes], n_bytes: int) -> Block:
    (n,) = _read_numbers(pipe, 1)
    if n < 0:
        raise DataError(_read(pipe, int(_read_numbers(pipe, 1)[0])).decode())
    lengths = _read_numbers(pipe, int(n))
    return Block(np.frombuffer(_read(pipe, 4 * int(lengths.sum())), dtype="<u4"), lengths, n_bytes)


def _write(pipe: IO[bytes], numbers: list[int], data: bytes) -> None:
    pipe.write(np.array(numbers, dtype="<i8").tobytes())
    pipe.write(data)
    pipe.flush()


def _read_numbers(pipe: IO[bytes], n: int) -> np.ndarray:
    return np.frombuffer(_read(pipe, 8 * n), dtype="<i8")


def _read(pipe: IO[bytes], n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


def serve(folder: Path) -> None:
    """What a worker does until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    tokenizer = load_tokenizer(folder)
    try:
        _write(answers, [], vocabulary_digest(tokenizer))
        while True:
            _answer(answers, tokenizer, _read_texts(source))
    except (BrokenPipeError, EOFError):  # the parent is done, or was killed
        os._exit(0)


def _read_texts(pipe: IO[bytes]) -> list[str]:
    (n,) = _read_numbers(pipe, 1)
    return [_read(pipe, int(size)).decode() for size in _read_numbers(pipe, int(n))]


def _answer(pipe: IO[bytes], tokenizer: Tokenizer, texts: list[str]) -> None:
    try:
        block = encode_block(tokenizer, texts)
    except CoterieError as e:
        message = str(e).encode()
        _write(pipe, [-1, len(message)], message)
        return
    _write(pipe, [len(texts), *block.lengths.tolist()], block.ids.tobytes())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
