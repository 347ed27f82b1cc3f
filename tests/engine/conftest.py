"""A fake model that counts, and short ways to ask it."""

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine import Engine, Request, SamplingParams
from coterie.engine.sequence import Event
from coterie.model import Output


class CountingModel:
    """After token i it always expects i + 1: logits are 5 for that and 0 for the rest. It never looks at the cache.

    `fails_at`: a pass over one of these ids raises, `breaks_at`: the logits after one of these ids are NaN.
    """

    cache_dtype, device = torch.float32, torch.device("cpu")
    fails_at: Sequence[int] = ()
    breaks_at: Sequence[int] = ()
    n_failures = 1 << 30

    def __init__(self, **fields: object):
        self.config = ModelConfig(
            **{
                "vocab_size": 259,
                "hidden_size": 4,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
            }
            | {"max_position_embeddings": 640}
            | fields
        )
        self.n_rows: list[int] = []

    def __call__(self, ids_T: torch.Tensor, positions_T: torch.Tensor, cache: object, rows: object = None) -> Output:
        assert ids_T.shape == positions_T.shape
        if self.n_failures and any(i in self.fails_at for i in ids_T.tolist()):
            self.n_failures -= 1
            raise RuntimeError("this pass fails")
        self.n_rows.append(len(ids_T))
        return Output(ids_T[:, None].float(), [])

    def head(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        logits_TV = torch.nn.functional.one_hot((hidden_TD[:, 0].long() + 1) % 259, 259) * 5.0
        for i in self.breaks_at:
            logits_TV[hidden_TD[:, 0] == i] = torch.nan
        return logits_TV


def request(
    text: str, owner: str = "", grammar: object = None, wants_progress: bool = False, **params: object
) -> Request:
    ids = tuple(3 + b for b in text.encode())
    return Request(
        ids,
        SamplingParams.of(params),
        ids,
        owner=owner,
        grammar=grammar,
        wants_progress=wants_progress,  # type: ignore[arg-type]
    )


def by_sample(events: Sequence[Event]) -> dict[tuple[int, int], SimpleNamespace]:
    """(request, sample) -> its text, ids and why it ended; nothing may come after the end."""
    found: dict[tuple[int, int], SimpleNamespace] = defaultdict(
        lambda: SimpleNamespace(text="", ids=[], end=None, error=None, n_cached=[])
    )
    for e in events:
        sample = found[e.request, e.sample]
        assert sample.end is None
        sample.text += e.text
        sample.ids += [] if e.token_id is None else [e.token_id]
        sample.n_cached += [e.n_cached] if len(sample.ids) == 1 and e.token_id is not None else []
        sample.end, sample.error = e.finish_reason, e.error
    return found


def finish(engine: Engine) -> dict[tuple[int, int], SimpleNamespace]:
    """Step until idle; failures are events."""
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    return by_sample(events)


def run(
    model: object, tokenizer: object, *requests: Request, **options: object
) -> dict[tuple[int, int], SimpleNamespace]:
    engine = Engine(model, tokenizer, **options)  # type: ignore[arg-type]
    for r in requests:
        engine.add(r)
    return finish(engine)


@pytest.fixture(scope="session")
def counting() -> SimpleNamespace:
    """`Model`, `request(text, ...)`, `run(model, tokenizer, *requests)`, `finish(engine)`, `by_sample(events)`."""
    return SimpleNamespace(Model=CountingModel, request=request, run=run, finish=finish, by_sample=by_sample)
