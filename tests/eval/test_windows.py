import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, RequestError
from coterie.eval.windows import Reader, Window, check_context, cut, ending_at, prefix_id
from coterie.model import Transformer
from coterie.model.attention import WholeSequences

IDS = torch.randint(3, 32, (700,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Transformer]) -> Transformer:
    return make_model(vocab_size=32, max_position_embeddings=2048)


def by_hand(model: Transformer, window: Window) -> list[float]:
    with torch.inference_mode():
        out = model(torch.tensor(window.ids), torch.arange(len(window.ids)), WholeSequences(1, None))
        logp_TV = model.head(out.hidden_TD).log_softmax(-1)[-len(window.targets) :]
    return [-float(row[target]) for row, target in zip(logp_TV, window.targets, strict=True)]


def test_the_example_of_the_page() -> None:
    found = list(cut([10, 11, 12, 13, 14, 15, 16], context=4, stride=2, prefix=1))
    assert [w.ids for w in found] == [(1, 10, 11, 12), (1, 12, 13, 14), (1, 13, 14, 15)]
    assert [w.targets for w in found] == [(10, 11, 12, 13), (14, 15), (16,)]
    assert [w.first for w in found] == [0, 4, 6]


@pytest.mark.parametrize(("n", "context", "stride"), [(1, 8, 8), (7, 8, 4), (8, 8, 3), (100, 16, 1), (101, 16, 7)])
def test_every_token_is_scored_once_after_no_less_than_context_less_stride(n: int, context: int, stride: int) -> None:
    windows = list(cut(list(range(n)), context=context, stride=stride, prefix=99))
    assert [t for w in windows for t in w.targets] == list(range(n))
    for w in windows:
        assert len(w.ids) <= context and w.ids[0] == 99
        if w.first:
            assert len(w.ids) == context
            assert len(w.ids) - len(w.targets) >= context - stride
        assert list(w.ids[1:]) == list(range(w.targets[-1] - len(w.ids) + 1, w.targets[-1]))


def test_no_text_has_no_window() -> None:
    assert list(cut([], context=4, stride=2, prefix=1)) == []


def test_the_same_tokens_after_more_and_more(model: Transformer) -> None:
    short, long = (ending_at(IDS, 60, context=c, n_scored=4, prefix=1) for c in (8, 50))
    assert short.targets == long.targets == tuple(IDS[56:60])
    assert len(short.ids) == 8 and len(long.ids) == 50 and long.ids[-8:][1:] == short.ids[1:]


def test_nats_are_one_softmax_at_a_time_whatever_shares_the_pass(model: Transformer) -> None:
    reader = Reader(model)
    windows = [*cut(IDS[:90], context=32, stride=16, prefix=1), *cut(IDS, context=600, stride=300, prefix=1)]
    windows += [Window((1, 5), (9,)), *cut(IDS[:40], context=600, stride=300, prefix=1)]
    seen: list[tuple[Window, int]] = []
    read = list(reader.read(windows, lambda w, out: seen.append((w, len(out.routings[1].ids_TK)))))
    assert [w for w, _ in read] == windows
    assert seen == [(w, len(w.targets)) for w in windows]
    for window, hidden in read:
        np.testing.assert_allclose(reader.nats(hidden, window.targets), by_hand(model, window), rtol=2e-4, atol=2e-4)


def test_logits_that_are_no_numbers_are_an_error(make_model: Callable[..., Transformer]) -> None:
    broken = make_model(vocab_size=32)
    with torch.no_grad():
        broken.tensors()["layers.1.attention.o"].fill_(math.nan)
    reader = Reader(broken)
    with pytest.raises(CheckpointError, match="not numbers"):
        for window, hidden in reader.read(cut(IDS[:8], context=8, stride=4, prefix=1)):
            reader.nats(hidden, window.targets)


def test_a_context_beyond_the_model_is_refused() -> None:
    assert check_context(2048, 2048) == 2048
    for wrong in (4096, 1, "256", True):
        with pytest.raises(RequestError, match="from 2 to 2048, the model's context"):
            check_context(wrong, 2048)  # type: ignore[arg-type]


def test_what_stands_before_a_text() -> None:
    assert prefix_id(ModelConfig()) == 1
    assert prefix_id(ModelConfig(vocab_size=32, bos_token_id=None, eos_token_id=(7, 8))) == 7
    assert prefix_id(ModelConfig(vocab_size=32, bos_token_id=None, eos_token_id=None)) == 0
