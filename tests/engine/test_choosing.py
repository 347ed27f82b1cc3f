from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coterie.engine.choosing import greedy_ids, next_event
from coterie.engine.sequence import Sequence


def test_rows_that_are_no_numbers_have_no_argmax() -> None:
    logits = torch.tensor([[0.0, 2, 1], [0, torch.nan, 1], [3, 3, 3], [torch.inf, 0, 0]])
    assert greedy_ids(logits) == [1, -1, 0, -1]
    assert greedy_ids(logits[[2, 0]]) == [0, 1]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"logprobs": 0}])
def test_a_failure_is_an_event(counting: SimpleNamespace, params: dict[str, Any]) -> None:
    s = Sequence.of(7, counting.request("a", max_tokens=4, **params), 0, 0, (), None)
    logits = torch.tensor([[0.0, 2, 1], [0, torch.nan, 1]])
    assert next_event(s, logits[:, :3], 0, greedy_ids(logits)).token_id is not None
    event = next_event(s, logits, 1, greedy_ids(logits))
    assert (event.finish_reason, event.token_id, s.is_done) == ("error", None, True)
    assert event.error is not None and "not finite" in event.error and event.cause is not None


def test_nothing_is_asked_for(counting: SimpleNamespace) -> None:
    s = Sequence.of(7, counting.request("a", max_tokens=0), 0, 0, (), None)
    event = next_event(s, torch.zeros(1, 3), 0, [0])
    assert (event.finish_reason, event.token_id) == ("length", None)
