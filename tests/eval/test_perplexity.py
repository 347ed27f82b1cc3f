import math
from dataclasses import replace

import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import DataError
from coterie.eval.perplexity import score_tokens
from coterie.model import Transformer
from coterie.router_config import RouterConfig
from coterie.train.initialise import initialise

TINY = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(TINY, torch.float32)
    initialise(model, std=0.3, seed=0)
    return model


def by_hand(model: Transformer, ids: list[int], window: int) -> float:
    """-Σ log p of each window's tokens after [BOS, those before], one full softmax at a time."""
    from coterie.model.attention import WholeSequences

    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids), window):
            part = ids[start : start + window]
            row = torch.tensor([1, *part[:-1]])
            out = model(row, torch.arange(len(row)), WholeSequences(1, None))
            logp = model.head(out.hidden_TD).log_softmax(-1)
            nats -= sum(float(logp[i, t]) for i, t in enumerate(part))
    return nats


@pytest.mark.parametrize("batch", [1, 3])
def test_sum_equals_one_softmax_at_a_time(model: Transformer, batch: int) -> None:
    ids = torch.randint(3, 32, (45,), generator=torch.Generator().manual_seed(0)).tolist()
    score = score_tokens(model, ids, window=10, batch=batch)
    assert score.n_tokens == 45
    assert score.nats == pytest.approx(by_hand(model, ids, 10), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nats / 45))
    assert score.bits_per_byte(2.0) == pytest.approx(score.nats / math.log(2) / 90)


def test_a_soft_router_mixes_the_tokens_of_a_window_and_of_no_other() -> None:
    """All windows of a batch were one sequence to it."""
    config = replace(TINY, num_experts_per_tok=4, router=RouterConfig(kind="soft"))
    model = Transformer(config, torch.float32)
    initialise(model, std=0.3, seed=0)
    ids = torch.randint(3, 32, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    alone, together = (score_tokens(model, ids, window=10, batch=batch).nats for batch in (1, 4))
    assert together == pytest.approx(alone, rel=1e-6) and alone == pytest.approx(by_hand(model, ids, 10), rel=1e-5)


def test_shares_are_loads_over_the_fair_share(model: Transformer) -> None:
    score = score_tokens(model, list(range(3, 32)), window=8)
    assert len(score.shares()) == 2
    for layer, counts in zip(score.shares(), score.counts_LE, strict=True):
        assert sum(layer) == pytest.approx(4.0) and int(counts.sum()) == 29 * 2


def test_evenly_spaced_windows_where_all_are_too_many(model: Transformer) -> None:
    seen: list[tuple[int, int]] = []
    score = score_tokens(model, list(range(30)), window=3, max_windows=2, progress=lambda d, t: seen.append((d, t)))
    assert score.n_tokens == 6 and seen[-1] == (2, 2)


def test_a_text_shorter_than_a_window_is_one_short_window(model: Transformer) -> None:
    ids = [5, 9, 4]
    assert score_tokens(model, ids, window=50).nats == pytest.approx(by_hand(model, ids, 50), rel=1e-5)


def test_nothing_to_score_is_an_error(model: Transformer) -> None:
    with pytest.raises(DataError, match="no tokens to score"):
        score_tokens(model, [], window=4)
