"""What a load asks: random prompts of a given length that no cache has seen, or those of a file.

Where the server says how large its vocabulary is, a random prompt is token ids out of the middle four fifths of it (no
control tokens, no bytes), so its length is exact. Else, and for chats, it is made-up words, as many as the server's
/tokenize says are needed.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from coterie.bench.client import Client, Failure
from coterie.errors import DataError

__all__ = ["Lengths", "Prompt", "Words", "find_model", "is_chat", "random_prompts", "read_prompts", "words_of"]

_LARGEST_FILE = 1 << 30
_SAMPLE = 400  # words to measure tokens by
_GUESS = 2.5  # tokens of a made-up word, where nobody says


@dataclass(frozen=True, slots=True)
class Prompt:
    """`body` is what it adds to a request's: `prompt` or `messages`, and `max_tokens`."""

    body: dict[str, Any]
    n_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens; a `spread` of 0.2 draws input and output from 80 to 120 % of theirs. The prefix is the same in all."""

    n_input: int
    n_output: int
    n_prefix: int = 0
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Words:
    """How this server's prompts are made of n tokens: as ids, or as words."""

    n_vocabulary: int | None
    tokens_per_word: float = _GUESS

    def make(self, rng: random.Random, n: int) -> list[int] | list[str]:
        if self.n_vocabulary is None:
            return [_word(rng) for _ in range(max(1, round(n / self.tokens_per_word)))]
        return rng.choices(range(self.n_vocabulary // 10, self.n_vocabulary * 9 // 10), k=n)


def is_chat(endpoint: str) -> bool:
    return endpoint.rstrip("/").endswith("/chat/completions")


async def find_model(client: Client, name: str | None) -> tuple[str, int | None]:
    """The model's name, the server's first where none is given, and the size of its vocabulary where it says so."""
    try:
        answer = await client.json("GET", "/v1/models")
        cards = [card for card in answer["data"] if isinstance(card["id"], str)]
    except (KeyError, TypeError):
        raise Failure("/v1/models does not list models") from None
    except Failure:
        if name is None:
            raise
        return name, None
    if name is None and not cards:
        raise Failure("/v1/models lists no model; name one with --model")
    name = cards[0]["id"] if name is None else name
    card: dict[str, Any] = next((c for c in cards if c["id"] == name), {})
    for part, field in (("coterie", "vocab_size"), ("meta", "n_vocab")):  # ours, llama-server's
        size = card[part].get(field) if isinstance(card.get(part), dict) else None
        if type(size) is int and 100 <= size <= 1 << 24:
            return name, size
    return name, None


async def words_of(client: Client, endpoint: str, model: str, n_vocabulary: int | None) -> Words:
    """How prompts of a length are made here."""
    if n_vocabulary is not None and not is_chat(endpoint):
        return Words(n_vocabulary)
    rng = random.Random(0)
    text = " ".join(_word(rng) for _ in range(_SAMPLE))
    for field in ("prompt", "content"):  # vLLM's and ours, llama-server's
        try:
            answer = await client.json("POST", "/tokenize", {"model": model, field: text})
            if n := len(answer["tokens"]):
                return Words(None, n / _SAMPLE)
        except (Failure, KeyError, TypeError):
            pass
    return Words(None)


def random_prompts(words: Words, lengths: Lengths, n: int, seed: int, endpoint: str) -> list[Prompt]:
    """n of them, each another one; the same for the same seed."""
    rng = random.Random(seed)
    prefix = words.make(rng, lengths.n_prefix) if lengths.n_prefix else []
    prompts = []
    for _ in range(n):
        n_input, n_output = (_near(rng, length, lengths.spread) for length in (lengths.n_input, lengths.n_output))
        parts: list[Any] = [*prefix, *words.make(rng, n_input)]
        prompt = parts if words.n_vocabulary is not None else " ".join(parts)
        prompts.append(_prompt(prompt, n_output, endpoint, lengths.n_prefix + n_input))
    return prompts


def read_prompts(path: Path, n: int, n_output: int, endpoint: str) -> list[Prompt]:
    """The first n of a file, from its beginning again where it has fewer. Raises `DataError`.

    A line is {"prompt": text} or {"messages": [...]}; "output_tokens" (or "max_tokens") in it goes before `n_output`.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path}: larger than {_LARGEST_FILE >> 20} MB")
    with path.open(encoding="utf-8") as file:
        found = list(islice(_parsed(path, file, n_output, endpoint), n))
    if not found:
        raise DataError(f"{path}: has no prompt")
    return list(islice(cycle(found), n))


def _parsed(path: Path, lines: Iterable[str], n_output: int, endpoint: str) -> Iterator[Prompt]:
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _of_line(f"{path}, line {number}", line, n_output, endpoint)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None


def _of_line(where: str, line: str, n_output: int, endpoint: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: is not JSON") from None
    given = value.get("prompt", value.get("messages")) if isinstance(value, dict) else None
    if not (given and isinstance(given, str | list)):
        raise DataError(f'{where}: expected {{"prompt": "..."}} or {{"messages": [...]}}')
    n = value.get("output_tokens", value.get("max_tokens", n_output))
    if type(n) is not int or n < 1:
        raise DataError(f"{where}: output_tokens is {n!r}, expected a whole number of at least 1")
    if "prompt" not in value and not is_chat(endpoint):
        raise DataError(f"{where}: has messages, which need --endpoint /v1/chat/completions")
    return _prompt(given, n, endpoint, None)


def _prompt(given: Any, n_output: int, endpoint: str, n_tokens: int | None) -> Prompt:
    if not is_chat(endpoint):
        return Prompt({"prompt": given, "max_tokens": n_output}, n_tokens)
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return Prompt({"messages": messages, "max_tokens": n_output})


def _near(rng: random.Random, n: int, spread: float) -> int:
    return max(1, rng.randint(int(n * (1 - spread)), round(n * (1 + spread)))) if spread else n


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
