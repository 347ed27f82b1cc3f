import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from coterie.eval.divergence import Divergence, compare, kl_of
from coterie.eval.windows import Reader, Window
from coterie.model import Transformer

WINDOWS = [Window((1, 5, 9), (5, 9, 4)), Window((1, 7), (7, 8), text=2), Window((1, 3, 3), (3,), text=2)]


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert float(kl_of(p.log(), q.log())) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert float(kl_of(p.log(), p.log())) == 0


def test_a_model_against_itself(make_model: Callable[..., Transformer]) -> None:
    model, seen = make_model(vocab_size=32), list[tuple[int, int]]()
    found = compare(Reader(model), Reader(model), WINDOWS, lambda d, t: seen.append((d, t)))
    assert found.mean_kl().value == 0 and found.agreement().value == 1 and found.ratio().value == 1
    assert found.text.tolist() == [0, 0, 0, 2, 2, 2] and seen[-1] == (6, 6)


def test_two_models_one_softmax_at_a_time(make_model: Callable[..., Transformer]) -> None:
    a, b = Reader(make_model(vocab_size=32)), Reader(make_model(seed=1, vocab_size=32))
    found = compare(a, b, WINDOWS)
    logp, logq = (
        torch.cat([logits for _, hidden in reader.read(WINDOWS) for logits in reader.logits(hidden)])
        .double()
        .log_softmax(-1)
        for reader in (a, b)
    )
    targets = [t for w in WINDOWS for t in w.targets]
    np.testing.assert_allclose(found.kl, (logp.exp() * (logp - logq)).sum(-1).numpy(), atol=1e-5)
    np.testing.assert_allclose(found.nats, [-float(logq[i, t]) for i, t in enumerate(targets)], rtol=1e-5)
    np.testing.assert_allclose(found.nats_original, [-float(logp[i, t]) for i, t in enumerate(targets)], rtol=1e-5)
    assert found.is_same_top.tolist() == (logp.argmax(-1) == logq.argmax(-1)).double().tolist()


def test_figures_of_planted_tokens() -> None:
    kl = np.array([0.0, 0.0, 0.0, 4.0])
    same, nats, text = np.array([1.0, 1, 1, 0]), np.array([2.0, 2, 2, 2]), np.array([0, 0, 3, 3])
    found = Divergence(kl, same, nats, nats - math.log(1.5), text)
    assert found.mean_kl().value == 1 and found.quantile(0.5) == 0 and found.quantile(1) == 4
    assert found.agreement().value == 0.75 and found.agreement().stderr is not None
    assert found.ratio().value == pytest.approx(1.5) and found.ratio().stderr == pytest.approx(0, abs=1e-9)
    assert found.select([3]).mean_kl().value == 2 and found.select([3]).mean_kl().stderr is None
