"""Three other users, whose streams have to be, bit by bit, what they are when nobody else is there."""

import json
import threading
from typing import Any

from raw_http import Stream

__all__ = ["Neighbours", "streamed"]

_PATH = "/v1/completions"
_PROMPTS = ("Il était une fois un roi", "The sea was calm, and", "def fibonacci(n):\n    ")


def streamed(url: str, body: dict[str, Any], path: str = _PATH, wait: float = 120.0) -> list[Any]:
    """A streamed answer but for what differs each time (ids, times): its choices, frame after frame joined."""
    with Stream(url, path, body, wait=wait) as stream:
        assert stream.status == 200, stream.rest().text
        frames = list(stream)
    assert frames[-1] == "[DONE]", frames[-1:]
    chunks = [json.loads(frame) for frame in frames[:-1]]
    assert not any("error" in chunk for chunk in chunks), chunks[-1]
    return _joined([choice for chunk in chunks for choice in chunk["choices"]])


def _joined(choices: list[dict[str, Any]]) -> list[Any]:
    """How an answer is cut into frames depends on who waits for whom; text, log-probabilities and ending must not."""
    text = "".join(c.get("text") or "" for c in choices)
    logprobs: list[Any] = []
    for choice in choices:
        part = choice.get("logprobs") or {}
        logprobs += list(zip(part.get("tokens", []), part.get("token_logprobs", []), strict=True))
    return [text, logprobs, [c["finish_reason"] for c in choices if c["finish_reason"]]]


class Neighbours:
    """Within the block three threads stream without end; whatever they got must be what they got alone."""

    def __init__(self, url: str, *, n_tokens: int = 24):
        self._url = url
        self._bodies = [
            {
                "prompt": p,
                "max_tokens": n_tokens,
                "temperature": 0.8,
                "top_k": 99,
                "seed": 7 + i,
                "logprobs": 2,
                "user": f"n{i}",
            }
            for i, p in enumerate(_PROMPTS)
        ]
        self._alone = [streamed(url, body) for body in self._bodies]
        self._is_over = threading.Event()
        self._failures: list[str] = []
        self.n_answers = 0

    def __enter__(self) -> "Neighbours":
        self._threads = [
            threading.Thread(target=self._stream, args=(i,), daemon=True) for i in range(len(self._bodies))
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(120)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a neighbour's stream does not end"
            assert not self._failures, self._failures[:3]
            assert self.n_answers >= len(self._bodies)

    def _stream(self, i: int) -> None:
        try:
            while True:
                got = streamed(self._url, self._bodies[i])
                if got != self._alone[i]:
                    self._failures.append(f"neighbour {i} got {got!r}\nalone it was {self._alone[i]!r}")
                self.n_answers += 1
                if self._is_over.wait(0.05):
                    return
        except Exception as e:
            self._failures.append(f"neighbour {i}: {type(e).__name__}: {e}")
