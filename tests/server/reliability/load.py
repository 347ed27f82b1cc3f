"""Other people's requests, many at a time, from threads: what a test of crowds is made of."""

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raw_http import Connection, Stream, request_bytes

__all__ = [
    "PROMPTS",
    "Repeated",
    "body_of",
    "first_token",
    "in_parallel",
    "json_frames",
    "leave_abruptly",
    "random_request",
    "read_a_while",
]

TEXT = "/v1/completions"
PROMPTS = ("Il était une fois", "The king had three daughters, and", "def f(x):\n", "Es war einmal ein König")


def body_of(n_tokens: int, *, n_prompt: int = 1, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A request for exactly `n_tokens`; the prompt is some text `n_prompt` times, begun so that no two are alike."""
    prompt = f"{seed} " + PROMPTS[seed % len(PROMPTS)] * n_prompt
    sampling = {"temperature": 1.0, "top_k": 50, "seed": seed}  # 50: the landmines of faulty_server never come up
    return {"prompt": prompt, "max_tokens": n_tokens, "ignore_eos": True, **sampling, **fields}


def in_parallel(work: Callable[[int], Any], numbers: Iterable[int], n_threads: int) -> list[Any]:
    """`work(i)` of each, so many at a time; raises what one of them raised."""
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(work, numbers))


def first_token(url: str, body: dict[str, Any], wait: float = 60.0) -> tuple[float, float]:
    """Seconds until the first token of a streamed answer, and until its end."""
    begun = time.perf_counter()
    with Stream(url, TEXT, body, wait=wait) as stream:
        assert stream.status == 200, stream.rest().text
        frames = iter(stream)
        next(frames)
        first = time.perf_counter() - begun
        last = ""
        for frame in frames:
            last = frame
        assert last == "[DONE]"
    return first, time.perf_counter() - begun


def read_a_while(url: str, body: dict[str, Any], seconds: float, *, is_streamed: bool, is_abrupt: bool) -> int:
    """Ask, read for so long, and leave in the middle. How many bytes came."""
    n = 0
    with Connection(url, max(seconds, 0.001)) as connection:
        connection.send(request_bytes("POST", TEXT, {**body, "stream": is_streamed}))
        end = time.perf_counter() + seconds
        try:
            while (left := end - time.perf_counter()) > 0:
                connection.socket.settimeout(left)
                if not (data := connection.socket.recv(65536)):
                    break
                n += len(data)
        except (TimeoutError, ConnectionError):
            pass
        if is_abrupt:
            leave_abruptly(connection)
    return n


def leave_abruptly(connection: Connection) -> None:
    """A reset instead of a farewell, as when a machine is switched off."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def random_request(chance: random.Random, seed: int) -> dict[str, Any]:
    """Of any of the shapes that requests have: short, long, several answers, log-probabilities, routing."""
    extras: list[dict[str, Any]] = [{}, {}, {"n": 3}, {"logprobs": 2}, {"return_routing": "stream"}, {"stop": ["\n"]}]
    return body_of(
        chance.choice((1, 16, 64, 256)), n_prompt=chance.choice((1, 1, 20, 120)), seed=seed, **chance.choice(extras)
    )


class Repeated:
    """Within the block so many threads do `work(i, k)` again and again; leaving it waits for them and raises theirs."""

    def __init__(self, work: Callable[[int, int], Any], n_threads: int):
        self._work, self._is_over = work, threading.Event()
        self.results: list[Any] = []
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(n_threads)]

    def __enter__(self) -> "Repeated":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a request does not end"
        if kind is None and self._errors:
            raise self._errors[0]

    def _run(self, i: int) -> None:
        k = 0
        try:
            while not self._is_over.is_set():
                self.results.append(self._work(i, k))
                k += 1
        except BaseException as e:
            self._errors.append(e)


def json_frames(frames: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames if frame != "[DONE]"]
