import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.checkpoint.huggingface import save_huggingface
from coterie.cli.train_compare import compare_runs
from coterie.config import ModelConfig
from coterie.errors import CoterieError, RecipeError
from coterie.model import Transformer
from coterie.train.initialise import initialise
from coterie.train.recipe import Data, Recipe, Train

MODEL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "torch_dtype": "float32",
}  # fmt: skip
PLAN = Recipe(model=MODEL, data=Data(files=("x",)), train=Train(steps=3))
FIGURES = {"max_vio": 0.5, "entropy": 0.9, "idle": 1, "dropped": 0.0, "tokens_per_s": 100.0}


class FakeRuns:
    """Leaves what a run leaves, without training."""

    def __init__(self, failing: str = "", stopping: str = ""):
        self.failing, self.stopping, self.kinds = failing, stopping, []

    def __call__(self, plan: Recipe, folder: Path) -> dict[str, Any] | None:
        kind = plan.router.kind
        self.kinds.append(kind)
        if kind == self.failing:
            raise RuntimeError("out of order")
        if kind == self.stopping:
            return None
        config = ModelConfig.from_fields(plan.model | {"router": plan.router}, where="test")
        model = Transformer(config, torch.float32)
        initialise(model, std=0.02, seed=0)
        save_huggingface(folder / "model", config, model.tensors(), dtype="float32", replace=True)
        lines = [json.dumps({"step": i, "loss": 3.0 - i} | FIGURES) for i in range(3)]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
        scores = {"a": {"bits_per_byte": 2.0}, "b": {"bits_per_byte": 3.0}}
        (folder / "scores.json").write_text(json.dumps(scores))
        return scores


def test_every_kind_is_run_once_and_ends_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = FakeRuns()
    rows = compare_runs(PLAN, tmp_path, ["topk", "switch", "soft"], runs)
    assert [r["kind"] for r in rows] == runs.kinds == ["topk", "switch", "soft"]
    assert rows[0]["bits_per_byte"] == 2.5 and rows[0]["loss"] == 1.0 and rows[0]["tokens_per_s"] == 100.0
    assert rows[2]["can_decode"] is False and rows[1]["active"] < rows[0]["active"]
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    assert "flattered" in (tmp_path / "table.md").read_text() and (tmp_path / "plot.svg").exists()
    assert compare_runs(PLAN, tmp_path, ["topk", "gshard"], runs)[1]["kind"] == "gshard"
    assert runs.kinds == ["topk", "switch", "soft", "gshard"]  # topk was complete


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    with pytest.raises(CoterieError, match="switch failed, the others did not"):
        compare_runs(PLAN, tmp_path, ["topk", "switch", "soft"], FakeRuns(failing="switch"))
    table = (tmp_path / "table.md").read_text()
    assert "switch failed: RuntimeError: out of order" in table and "| topk |" in table and "| soft" in table


def test_stopped_runs_are_not_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = compare_runs(PLAN, tmp_path, ["topk", "switch"], FakeRuns(stopping="topk"))
    assert [r["kind"] for r in rows] == ["switch"]
    assert "1 of 2 routers are not trained to the end" in capsys.readouterr().err


def test_runs_of_another_recipe_are_not_taken_for_these(tmp_path: Path) -> None:
    compare_runs(PLAN, tmp_path, ["topk"], FakeRuns())
    other = Recipe(model=MODEL, data=Data(files=("x",)), train=Train(steps=3, lr=1.0))
    before = (tmp_path / "table.md").read_text()
    runs = FakeRuns()
    with pytest.raises(RecipeError, match="another recipe; choose another --out"):
        compare_runs(other, tmp_path, ["switch", "topk"], runs)
    assert runs.kinds == [] and (tmp_path / "table.md").read_text() == before
