"""A card that runs out of memory in the middle of a pass: that request fails with a sentence, the others go on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams
from coterie.errors import ResourceError
from coterie.model import Transformer


def test_one_request_fails_and_the_others_go_on(
    make_model: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(make_model())
    feed = engine.runner.feed

    def scarce(work: Any, edits: Any = None) -> Any:
        if any(len(ids) > 20 for _, ids in work):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return feed(work, edits)

    monkeypatch.setattr(engine.runner, "feed", scarce)
    for n in (5, 40, 7):
        engine.add(Request(tuple(range(1, n + 1)), SamplingParams(max_tokens=4)))
    causes = {}
    while not engine.is_idle:
        for event in engine.step():
            if event.finish_reason is not None:
                causes[event.request] = event.cause
    assert causes[0] is None and causes[2] is None
    assert isinstance(causes[1], ResourceError) and "40 tokens" in str(causes[1])
