"""Real steps of a tiny recipe, in this process and in another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import ResourceError
from coterie.train import measure as module
from coterie.train.measure import measure, measure_phases
from coterie.train.recipe import Recipe, read_recipe
from coterie.train.sample import Sample, sample

RECIPE = """
[model]
vocab_size = 128
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 3
num_attention_heads = 2
num_key_value_heads = 1
num_local_experts = 4
max_position_embeddings = 64
[data]
files = ["a.txt"]
[train]
steps = 8
batch = 4
sequence = [[0.0, 16], [0.5, 32]]
accumulate = 2
optimizer = "muon"
"""
CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path / "r.toml"


def parts(path: Path) -> tuple[Recipe, ModelConfig]:
    recipe = read_recipe(path)
    return recipe, ModelConfig.from_fields(recipe.model, where="test")


@pytest.mark.parametrize("change", ["", "recompute = true\n", 'optimizer = "adamw"\n'])
def test_steps_are_timed_and_counted(path: Path, change: str) -> None:
    text = path.read_text().replace('optimizer = "muon"\n', "") if "adamw" in change else path.read_text()
    path.write_text(text + change)
    found = sample(*parts(path), torch.float32, CPU, rows=2, sequence=16, seconds=0.1)
    assert found.rows == 2 and found.layers == 3 and found.micro_batches >= 2
    assert found.micro_seconds > 0 and found.optimizer_seconds > 0 and found.peak >= found.framework > 0
    assert min(found.kept.values()) > 0
    twice = sample(*parts(path), torch.float32, CPU, rows=4, sequence=16, seconds=0.1)
    assert twice.kept["norms"] == pytest.approx(2 * found.kept["norms"], rel=0.05)


def test_another_process_answers(path: Path) -> None:
    _, config = parts(path)
    found = measure(path, config, torch.float32, CPU, rows=2, sequence=16, seconds=0.1)
    assert isinstance(found, Sample) and found.layers == 3 and found.peak >= found.framework > 10_000_000


def test_a_process_that_fails_is_one_sentence(path: Path, tmp_path: Path) -> None:
    _, config = parts(path)
    with pytest.raises(ResourceError, match=r"ended early: .*none\.toml cannot be read.*; use --no-measure"):
        measure(tmp_path / "none.toml", config, torch.float32, CPU, rows=2, sequence=16, seconds=0.1)


def made_up(layers: int, seconds: float) -> Sample:
    return Sample(
        layers=layers, rows=2, sequence=16, micro_seconds=seconds, optimizer_seconds=0.0, micro_batches=3, framework=1,
        peak=2, is_settled=True, kept={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("quick", "one_layer", "largest", "expected"),
    [
        (True, 0.0, 24, [24]),  # cheap: all layers at once
        (False, 0.5, 24, [1, 10]),  # 5 seconds hold ten layers
        (False, 0.01, 24, [1, 24]),
        (False, 60.0, 24, [1, 2]),
        (False, 0.5, 3, [1, 3]),  # more do not fit the memory
        (True, 0.5, 1, [1]),
    ],
)
def test_depths_that_are_measured(quick: bool, one_layer: float, largest: int, expected: list[int]) -> None:
    found = module._samples(24, quick, 5.0, lambda n: made_up(n, one_layer), lambda n: n <= largest)
    assert [s.layers for s in found] == expected


def test_every_phase_is_measured_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, **how: float) -> Sample:
        asked.append((config.num_hidden_layers, how["rows"], how["sequence"], how["seconds"]))
        return made_up(config.num_hidden_layers, 0.1)

    monkeypatch.setattr(module, "measure", fake)
    said: list[str] = []
    found = measure_phases(path, *parts(path), torch.float32, CPU, available=10**10, report=said.append)
    assert [[s.layers for s in phase] for phase in found] == [[3], [3]]
    assert asked == [(3, 2, 16, 2.5), (3, 1, 32, 2.5)]
    assert said[0] == "measuring steps of 3 of 3 layers, rows of 16"


def test_a_layer_that_does_not_fit_is_not_tried(path: Path) -> None:
    with pytest.raises(ResourceError, match="not even one layer"):
        measure_phases(path, *parts(path), torch.float32, CPU, available=1000)


def test_masked_documents_are_measured_masked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.train.objective import Objective

    path.write_text(path.read_text().replace('files = ["a.txt"]', 'files = ["a.txt"]\ndocuments = "masked"'))
    seen, plain = [], Objective.backward

    def watched(self: Objective, ids: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, **how: Any) -> None:
        seen.append(documents[0].tolist())
        plain(self, ids, targets, documents, **how)

    monkeypatch.setattr(Objective, "backward", watched)
    sample(*parts(path), torch.float32, CPU, rows=2, sequence=16, seconds=0.01)
    assert seen[0] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
