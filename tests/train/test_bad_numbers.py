import json
from pathlib import Path

import torch

from coterie.train.bad_numbers import not_finite, write_bad_batch

ROWS = [{"file": name, "first_token": 32, "tokens": 2} for name in ("fr", "en", "fr")]


def test_the_batch_is_plain_json(tmp_path: Path) -> None:
    record = {"step": 3, "loss": float("nan"), "lr": 0.5, "alarms": ["x"]}
    write_bad_batch(tmp_path / "b.json", record, ROWS, torch.arange(6).view(3, 2))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "b.json").read_text(), parse_constant=refuse)
    assert found == {
        "step": 3, "loss": "nan", "lr": 0.5, "alarms": ["x"], "rows": ROWS, "ids": [[0, 1], [2, 3], [4, 5]],
    }  # fmt: skip


def test_the_sentence_says_what_where_and_what_to_do() -> None:
    error = str(not_finite({"step": 3, "loss": float("inf")}, ROWS, Path("run/b.json"), 0.5))
    assert "step 3: the loss is inf" in error and "(rows: 1 of en, 2 of fr) is in run/b.json" in error
    assert "smaller [train] lr (now 0.5)" in error and "remove the newest folder of run/checkpoints" in error
    assert "the gradient's norm is not finite" in str(not_finite({"step": 3, "loss": 1.0}, ROWS, Path("b"), 0.5))
