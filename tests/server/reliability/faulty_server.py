"""A server of the demo in which some tokens are landmines: faulty_server.py [NAME=VALUE of Settings]...

Tokens of control bytes never come up by themselves where top_k is asked for. Each of eleven is a way to fail: when it
is read in a prompt, or has been written, the pass with it fails, or its rows become NaN. Weights and kernels are real;
only the embedding and the tokenizer that are handed in are not.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import coterie
from coterie.api import LanguageModel
from coterie.server.app import App, build_app
from coterie.server.keys import Keys
from coterie.server.metrics import Metrics
from coterie.server.models import Models
from coterie.server.run import open_socket, serve
from coterie.server.settings import Settings

SECRET = "/root/secret.py line 5, at 0x7f00deadbeef"
RAISED: dict[str, Callable[[], BaseException]] = {
    "runtime": lambda: RuntimeError(SECRET),
    "memory": lambda: MemoryError(SECRET),
    "device memory": lambda: torch.OutOfMemoryError(SECRET),
    "value": lambda: ValueError(SECRET),
    "assertion": lambda: AssertionError(SECRET),
    "recursion": lambda: RecursionError(SECRET),
    "system": lambda: OSError(5, SECRET),
}
ROWS = {"nan": float("nan"), "infinite": float("inf"), "huge": 3e38}
KINDS = [*RAISED, *ROWS, "decode"]  # the last: its text cannot be made


def landmine(kind: str) -> int:
    """The token that stands for this kind of failure: that of a byte from 0x0E on."""
    return 3 + 0x0E + KINDS.index(kind)


class MinedEmbedding(nn.Module):
    """The model's embedding, which fails at landmines."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self._raised = {landmine(kind): make for kind, make in RAISED.items()}
        self._rows = {landmine(kind): value for kind, value in ROWS.items()}

    def forward(self, ids_T: Tensor) -> Tensor:
        for i in self._raised.keys() & set(ids_T.tolist()):
            raise self._raised[i]()
        x_TD: Tensor = self.inner(ids_T)
        for i, value in self._rows.items():
            x_TD = torch.where((ids_T == i)[:, None], torch.full_like(x_TD, value), x_TD)
        return x_TD


class MinedTokenizer:
    """The model's tokenizer, which cannot show one token."""

    def __init__(self, inner: Any, mine: int):
        self._inner, self._mine = inner, mine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        if self._mine in ids:
            raise KeyError(SECRET)
        text: str = self._inner.decode(ids, **options)
        return text


def mined(_: str) -> LanguageModel:
    lm = coterie.load()
    lm.model.embed = MinedEmbedding(lm.model.embed)
    tokenizer: Any = MinedTokenizer(lm.tokenizer, landmine("decode"))
    return LanguageModel(lm.model, tokenizer, lm.chat_form, name="demo")


def main(arguments: Sequence[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments)
    settings = Settings(port=0, **{name: int(value) for name, value in given.items()})
    sock = open_socket(settings)

    def make_app() -> App:
        metrics = Metrics()
        return build_app(Models({"demo": "demo"}, mined, settings, metrics.of_model), settings, Keys(), metrics)

    return serve(make_app, sock, lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
