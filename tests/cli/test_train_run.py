from typing import Any

import numpy as np
import pytest

from coterie.cli.train_run import score
from coterie.eval import perplexity
from coterie.train.recipe import Data, Recipe, Train
from coterie.train.tokens import TokenFile


@pytest.mark.parametrize(
    ("train", "batch"),
    [
        ({"batch": 2, "sequence": 64}, 2),  # more at a time may be more than there is memory for
        ({"batch": 8, "accumulate": 4, "sequence": ((0.0, 64), (0.5, 128))}, 1),
        ({"batch": 256, "sequence": 64}, 64),
    ],
)
def test_a_pass_of_scoring_is_no_larger_than_one_of_training(
    train: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def score_tokens(*args: Any, batch: int, **options: Any) -> perplexity.Score:
        asked.append(batch)
        found = perplexity.Score()
        found.n_tokens = 1
        return found

    monkeypatch.setattr(perplexity, "score_tokens", score_tokens)
    recipe = Recipe(model={}, data=Data(files=("x",)), train=Train(steps=4, **train))
    score(None, TokenFile("x", np.arange(9), 9), recipe)  # type: ignore[arg-type]
    assert asked == [batch]
