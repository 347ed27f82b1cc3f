"""Servers as processes for `serve.py`, each asked for a wave: several prompts at once, all answers timed."""

import asyncio
import http.client
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.bench.client import Client, Target
from coterie.bench.load import run_load
from coterie.bench.prompts import Lengths, Prompt, Words, find_model, random_prompts
from coterie.errors import ResourceError

__all__ = ["Ours", "Peer", "Server", "Wave"]

_READY_SECONDS = 300


@dataclass
class Wave:
    """When the tokens of several answers came, in seconds of one clock."""

    began: float
    times: list[list[float]]  # of each answer
    texts: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second of all answers, prompts and all."""
        return sum(map(len, self.times)) / (max(t[-1] for t in self.times) - self.began)

    @property
    def decode_rate(self) -> float:
        """The sum of the answers' rates from when the last one has begun until the first one ends, when nobody reads a
        prompt. NaN where there is no such time.
        """
        low, high = max(t[0] for t in self.times), min(t[-1] for t in self.times)
        within = [[at for at in t if low <= at <= high] for t in self.times]
        if not all(w and w[-1] > w[0] for w in within):
            return math.nan
        return sum((len(w) - 1) / (w[-1] - w[0]) for w in within)

    @property
    def first_ms(self) -> float:
        """The mean over the answers; all prompts were sent at once."""
        return 1000 * sum(t[0] - self.began for t in self.times) / len(self.times)


class Server:
    """A process that answers on `port`; a context manager that ends it."""

    def __init__(self, command: Sequence[str], threads: int, port: int):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)
        self._port = port
        self.client = Client(Target.of(f"http://127.0.0.1:{port}"))
        self._seeds = random.Random()
        try:
            self._wait()
            self._model, self._n_vocabulary = asyncio.run(find_model(self.client, None))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ids(self, n: int) -> list[int]:
        """Random ids of its vocabulary."""
        return list(self.prompts(1, n, 1)[0].body["prompt"])

    def prompts(self, n: int, n_input: int, n_output: int) -> list[Prompt]:
        """Other ones each time."""
        assert self._n_vocabulary is not None
        lengths = Lengths(n_input, n_output)
        return random_prompts(Words(self._n_vocabulary), lengths, n, self._seeds.randrange(1 << 31), "/v1/completions")

    def ask(self, prompts: Sequence[Prompt], **extra: Any) -> Wave:
        """All of them at once. Raises `ResourceError` where one fails."""
        fixed = {"model": self._model, "temperature": 0.0, "ignore_eos": True, "stream": True}
        body = {**fixed, "stream_options": {"include_usage": True}, **extra}
        run = asyncio.run(run_load(self.client, "/v1/completions", prompts, body))
        for outcome in run.outcomes:
            if outcome.error is not None or not outcome.times:
                raise ResourceError(f"{self._process.args[0]}: {outcome.error or 'no text'}")  # type: ignore[index]
        ordered = sorted(run.outcomes, key=lambda o: o.started)
        return Wave(run.began, [_each_token(o.times, o.n_output) for o in ordered], [o.text for o in ordered])

    def metric(self, name: str) -> float:
        """The sum of a counter of /metrics over its labels."""
        lines = self._get("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def _wait(self) -> None:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self._get("/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        self._log.seek(0)
        last = self._log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ResourceError(f"{self._process.args[0]} does not serve: {' '.join(last)}")  # type: ignore[index]

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Ours(Server):
    def __init__(self, source: str, threads: int, *flags: str):
        port = _free_port()
        command = [sys.executable, "-m", "coterie", "serve", f"model={source}", "--port", str(port), *flags]
        super().__init__(command, threads, port)


class Peer(Server):
    """llama-server, with a place for each chat and no memory of prompts beyond its places."""

    def __init__(self, program: str, source: str, threads: int, n_chats: int, n_context: int):
        if not Path(program).is_file():
            raise ResourceError(f"{program}: there is no such file; COTERIE_LLAMA_SERVER names llama-server's program")
        port, n = _free_port(), str(threads)
        flags = ["-m", source, "--host", "127.0.0.1", "--port", str(port), "-t", n, "-tb", n, "-np", str(n_chats)]
        flags += ["-c", str(n_chats * n_context), "--cache-ram", "0", "--no-webui"]
        super().__init__([program, *flags], threads, port)


def _each_token(times: list[float], n_tokens: int) -> list[float]:
    """A time for each token, where some had no text of their own or shared a piece: evenly among the pieces."""
    return [times[i * len(times) // n_tokens] for i in range(n_tokens)]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
