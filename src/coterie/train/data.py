"""Text files to batches of tokens: tokenised once into memory-mapped arrays, cut into windows, drawn in a fixed order.

Batch `step` is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would.
Every row starts with BOS: evaluation windows and prompts do too. Shapes: B rows, S positions.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.errors import DataError
from coterie.tokenizer.protocol import Tokenizer
from coterie.train.recipe import token_file_name

__all__ = ["Batches", "TokenFile", "read_mixture", "read_texts", "tokenize_file"]

_MOST_REPEATS = 16


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a .txt file (one), or of a .jsonl / .jsonl.gz file (`"text"` of each line)."""
    try:
        if ".jsonl" not in path.suffixes:
            yield path.read_text(encoding="utf-8")
            return
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield _text_of(line, path, number)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


def read_mixture(paths: Sequence[Path], weights: Sequence[float]) -> Iterator[str]:
    """The texts of all files, in about the proportions they are trained on: those drawn from more often come again.

    Example: two files of 4 MB with weights 0.1 and 0.3 give the first once and the second three times. No weights: each
    once. A file of weight 0 is left out, and none comes more than `_MOST_REPEATS` times.
    """
    sizes = [sum(len(text.encode()) for text in read_texts(path)) for path in paths] if weights else []
    rates = [weight / max(1, size) for weight, size in zip(weights, sizes, strict=True)] or [1.0] * len(paths)
    least = min((rate for rate in rates if rate > 0), default=1.0)
    for path, rate in zip(paths, rates, strict=True):
        for _ in range(min(_MOST_REPEATS, round(rate / least))):
            yield from read_texts(path)


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text: str = json.loads(line)["text"]
        text.encode()  # half a surrogate pair, which JSON can spell, is no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f'{path}, line {number}: expected a JSON object with a string "text"') from None
    return text


@dataclass(frozen=True)
class TokenFile:
    """All texts of one file, each ending with EOS where the vocabulary has one, as one row of ids (uint32)."""

    name: str
    ids: np.ndarray
    n_bytes: int


def tokenize_file(path: Path, tokenizer: Tokenizer, cache: Path, progress: Callable[[int, int], None]) -> TokenFile:
    """Tokenise `path` into `cache/NAME-KEY.ids`, or map the array that is there.

    KEY stands for the file (its place, size and time) and the vocabulary. The array is 8 bytes with the number of bytes
    of text, then an id in each 4 bytes, little-endian. `progress(bytes of text so far, 0)`.
    """
    stat = path.stat() if path.is_file() else None
    if stat is None:
        raise DataError(f"{path} is not a file; recipes find the training text through COTERIE_DATA")
    vocabulary = "\n".join(tokenizer.piece(i) for i in range(tokenizer.vocab_size))
    state = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {tokenizer.eos_id} {vocabulary}"
    key = hashlib.sha256(state.encode(errors="surrogatepass")).hexdigest()[:16]
    name = token_file_name(path.name)
    target = cache / f"{name}-{key}.ids"
    if not target.exists():
        with disk_errors(target):
            cache.mkdir(parents=True, exist_ok=True)
            with new_file(target) as out:
                _write_ids(out, path, tokenizer, progress)
    stored = np.memmap(target, dtype="<u4", mode="r")
    return TokenFile(name, stored[2:], int(stored[:2].view("<u8")[0]))


def _write_ids(out: BinaryIO, path: Path, tokenizer: Tokenizer, progress: Callable[[int, int], None]) -> None:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    n_bytes = 0
    out.write(bytes(8))
    for text in read_texts(path):
        out.write(np.array(tokenizer.encode(text) + end, dtype="<u4").tobytes())
        n_bytes += len(text.encode())
        progress(n_bytes, 0)
    if not n_bytes:
        raise DataError(f"{path} holds no text")
    out.seek(0)
    out.write(n_bytes.to_bytes(8, "little"))


class Batches:
    """Windows of every file in a seeded order without replacement, mixed by weight.

    `plan` is [(first step, sequence length), ...]; `tokens` is B·S of a step, the same in every phase.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        weights: Sequence[float],
        plan: list[tuple[int, int]],
        steps: int,
        tokens: int,
        bos: int,
        seed: int,
    ):
        self.files, self.plan, self.bos, self.tokens = list(files), plan, bos, tokens
        share = np.array(weights if weights else [len(f.ids) for f in files], dtype=np.float64)
        ends = [start for start, _ in plan[1:]] + [steps]
        self._phases = [
            self._draw(np.random.default_rng([seed, i]), share / share.sum(), (end - start) * tokens // length, length)
            for i, ((start, length), end) in enumerate(zip(plan, ends, strict=True))
        ]

    def _draw(self, rng: np.random.Generator, share: np.ndarray, n_rows: int, length: int) -> np.ndarray:
        """[n_rows, 2]: file and window of each row; a file's windows are all used before one comes again."""
        chosen = rng.choice(len(self.files), size=n_rows, p=share)
        rows = np.stack([chosen, np.zeros_like(chosen)], axis=1)
        for i, file in enumerate(self.files):
            n_windows, mine = (len(file.ids)) // length, np.flatnonzero(chosen == i)
            if n_windows == 0 and len(mine):
                raise DataError(f"{file.name} has {len(file.ids)} tokens, fewer than one sequence of {length}")
            orders = [rng.permutation(n_windows) for _ in range(-(-len(mine) // max(1, n_windows)))]
            if orders:
                rows[mine, 1] = np.concatenate(orders)[: len(mine)]
        return rows

    def sequence(self, step: int) -> int:
        """The length of the sequences of a step."""
        return self.plan[self._phase(step)][1]

    def _phase(self, step: int) -> int:
        return max(i for i, (start, _) in enumerate(self.plan) if start <= step)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """ids_BS and targets_BS (int64) of a step: row = [BOS, window without its last], target = window."""
        windows = [self.files[f].ids[at : at + n].astype(np.int64) for f, at, n in self._windows(step)]
        targets_BS = torch.from_numpy(np.stack(windows))
        ids_BS = torch.cat((torch.full((len(windows), 1), self.bos), targets_BS[:, :-1]), 1)
        return ids_BS, targets_BS

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Where each row of a step comes from: `{"file": name, "first_token": n, "tokens": S}`."""
        return [{"file": self.files[f].name, "first_token": at, "tokens": n} for f, at, n in self._windows(step)]

    def _windows(self, step: int) -> list[tuple[int, int, int]]:
        """File, first token and number of tokens of each row."""
        phase = self._phase(step)
        first, length = self.plan[phase]
        n_rows = self.tokens // length
        drawn = self._phases[phase][(step - first) * n_rows :][:n_rows]
        return [(int(f), int(window) * length, length) for f, window in drawn]
