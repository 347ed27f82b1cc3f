"""The runs of the evidence are recipes that work, and the report says what is in their folders."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from coterie.checkpoint.huggingface import save_huggingface
from coterie.config import ModelConfig
from coterie.model import Transformer
from coterie.train.initialise import initialise
from coterie.train.recipe import read_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks"
STEPS = read_recipe(FOLDER.parent / "recipes" / "evidence" / "sparse.toml").train.steps


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("evidence")


@pytest.fixture
def report(evidence: ModuleType) -> ModuleType:
    return importlib.import_module("evidence_report")


def parents(runs: Path) -> None:
    for name, speed in (("dense", 200.0), ("sparse", 100.0)):
        (runs / f"{name}-seed0" / "model").mkdir(parents=True)
        (runs / f"{name}-seed0" / "log.jsonl").write_text(json.dumps({"tokens_per_s": speed}) + "\n")


def test_every_run_is_a_recipe_that_can_be_read(evidence: ModuleType, tmp_path: Path) -> None:
    parents(tmp_path)
    names = set()
    for variant in evidence.VARIANTS:
        recipe = evidence.recipe_of(variant, 0, 1.0, tmp_path)
        (tmp_path / "r.toml").write_text(evidence.toml(recipe))
        read = read_recipe(tmp_path / "r.toml")
        expected = {"sparse-twice": 2, "dense-as-long": 2}.get(variant.name, 1) * STEPS
        assert read.train.steps == expected and read.data.tokenizer == str(tmp_path / "tokenizer")
        names.add(variant.name)
    assert len(names) == len(evidence.VARIANTS)


def test_seeds_and_lengths(evidence: ModuleType, tmp_path: Path) -> None:
    sparse = next(v for v in evidence.VARIANTS if v.name == "sparse")
    recipe = evidence.recipe_of(sparse, 2, 0.1, tmp_path)
    assert recipe["train"]["seed"] == recipe["init"]["seed"] == 2
    assert recipe["train"]["steps"] == STEPS // 10 and recipe["train"]["warmup"] == STEPS // 100
    with pytest.raises(FileNotFoundError):
        evidence.recipe_of(next(v for v in evidence.VARIANTS if v.parent), 0, 1.0, tmp_path)


def test_what_others_need_comes_first(evidence: ModuleType) -> None:
    order = [f"{v.name}-{seed}" for v, seed in evidence.planned([2], seeds=2)]
    assert order.index("dense-1") < order.index("upcycled-1") and "dense-as-long-0" not in order
    assert "router-switch-0" not in order and "sparse-0" in order
    assert len(list(evidence.planned([1, 2, 3, 4], seeds=3))) == 9 + 12 + 14 + 8


def made_run(folder: Path, speed: float, loss: float, **router: Any) -> None:
    """What a finished run leaves, in small."""
    fields: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_local_experts": 4, "max_position_embeddings": 64, "torch_dtype": "float32",
    }  # fmt: skip
    config = ModelConfig.from_fields(fields | router, where="test")
    model = Transformer(config, torch.float32)
    initialise(model, std=0.02, seed=0)
    save_huggingface(folder / "model", config, model.tensors(), dtype="float32", replace=True)
    record = {"max_vio": 0.5, "entropy": 0.9, "idle": 1, "dropped": 0.0, "tokens_per_s": speed}
    lines = [json.dumps({"step": i, "loss": loss + 1 / (i + 1)} | record) for i in range(120)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "scores.json").write_text(json.dumps({"a": {"bits_per_byte": loss}}))
    (folder / "recipe.toml").write_text("[train]\nbatch = 2\nsequence = 50\n")


def test_the_report_has_tables_pictures_and_keeps_the_text(report: ModuleType, tmp_path: Path) -> None:
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    docs.mkdir()
    for seed in range(3):
        made_run(runs / f"sparse-seed{seed}", 100.0, 2.0 + 0.01 * seed)
        made_run(runs / f"dense-seed{seed}", 200.0, 2.1 + 0.01 * seed, num_local_experts=None)
    made_run(runs / "router-expert_choice-seed0", 90.0, 1.9, router={"kind": "expert_choice"})
    (docs / "evidence.md").write_text("# Evidence\nMine.\n<!-- evidence 1 -->\nold\n<!-- end -->\nAlso mine.\n")
    report.write_report(runs, docs)
    page = (docs / "evidence.md").read_text()
    assert page.startswith("# Evidence\nMine.\n") and page.endswith("Also mine.\n") and "old" not in page
    assert "2.010 ± 0.010" in page and "sparse less dense: -0.100 ± 0.000 bits per byte" in page
    assert "after 60 seconds of updates each" in page
    (docs / "evidence.md").unlink()
    report.write_report(runs, docs)
    assert r"expert_choice \* |" in (docs / "evidence.md").read_text()
    assert len(json.loads((docs / "evidence.json").read_text())["runs"]["sparse"]) == 3
    assert {p.name for p in docs.glob("*.svg")} == {
        f"evidence-{n}.svg" for n in ("1-tokens", "1-seconds", "2", "3", "4-loss", "4-balance")
    }


def test_losses_at_equal_time_are_read_between_points(report: ModuleType) -> None:
    runs = [{"curve": [[0.1, 10.0, 4.0, 0.0], [0.2, 20.0, 2.0, 0.0]]}]
    assert report.loss_at(runs, 15.0) == 3.0 and report.loss_at(runs, 99.0) == 2.0 and report.loss_at(runs, 1.0) == 4.0
