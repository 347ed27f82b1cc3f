import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.errors import CheckpointError
from coterie.train.state import Checkpoints
from coterie.train.verify_resume import differences, verify_resume


class Run:
    """A fake of a training: a weight that grows by a random number each step, from a state or from the start."""

    def __init__(self, forgets: str = "", drift: float = 0.0):
        self.forgets, self.drift, self.calls = forgets, drift, list[tuple[str, int]]()

    def __call__(self, folder: Path, until: int) -> None:
        self.calls.append((folder.name, until))
        folder.mkdir(exist_ok=True)
        checkpoints = Checkpoints(folder)
        tensors, meta = checkpoints.latest() or ({}, {"step": 0})
        generator = torch.Generator().manual_seed(0)
        if "random" in tensors and self.forgets != "random":
            generator.set_state(tensors["random"])
        weight = tensors.get("weight", torch.zeros(3))
        with (folder / "log.jsonl").open("a") as log:
            for step in range(meta["step"], until):
                weight = weight + torch.rand(3, generator=generator) + self.drift * len(self.calls)
                log.write(json.dumps({"step": step, "loss": float(weight.sum()), "seconds": len(self.calls)}) + "\n")
        state = {"weight": weight, "random": generator.get_state()}
        checkpoints.save(until, state, {"step": until, "seconds": len(self.calls)})


def test_the_same_bits_are_no_difference(tmp_path: Path) -> None:
    run = Run()
    assert verify_resume(run, tmp_path, 5) == []
    assert run.calls == [("straight", 5), ("resumed", 2), ("resumed", 5)]


def test_a_forgotten_random_state_is_found_at_its_step(tmp_path: Path) -> None:
    found = verify_resume(Run(forgets="random"), tmp_path, 6)
    assert found[0].startswith("step 3: loss is") and found[0].endswith("after resuming")
    assert any("'weight' differs after resuming: 3 of 3 numbers, by up to" in sentence for sentence in found)
    assert any("'random' differs" in sentence for sentence in found)


def test_arithmetic_that_is_not_the_same_twice_is_told_apart(tmp_path: Path) -> None:
    found = verify_resume(Run(drift=1e-3), tmp_path, 6)
    assert found[0].startswith("step 0: loss is") and "before anything was resumed" in found[0]


Harm = Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda t, m: t.update(a=torch.tensor([1.0, -0.0])), "'a' differs after resuming: 1 of 2 numbers, by up to 0"),
        (lambda t, m: t.update(a=torch.zeros(2, 1)), r"torch.float32 \[2\] became torch.float32 \[2, 1\]"),
        (lambda t, m: t.update(a=torch.zeros(2).double()), "became torch.float64"),
        (lambda t, m: t.pop("a"), "'a' is there only without a stop"),
        (lambda t, m: t.update(b=torch.zeros(1)), "'b' is there only after resuming"),
        (lambda t, m: m.update(fields=[2]), r"the state's 'fields' is \[1\] without a stop and \[2\] after resuming"),
    ],
)
def test_every_kind_of_difference_is_named(tmp_path: Path, harm: Harm, sentence: str) -> None:
    tensors, meta = {"a": torch.tensor([1.0, 0.0])}, {"step": 1, "fields": [1], "seconds": 1.0}
    for name in ("straight", "resumed"):
        if name == "resumed":
            harm(tensors, meta)
        Checkpoints(tmp_path / name).save(1, tensors, meta)
        (tmp_path / name / "log.jsonl").write_text("")
    found = list(differences(tmp_path / "straight", tmp_path / "resumed", 1))
    assert len(found) == 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(found[0])


def test_lines_that_are_missing_and_not_a_number(tmp_path: Path) -> None:
    for name, lines in (("straight", [0, 1]), ("resumed", [0])):
        Checkpoints(tmp_path / name).save(2, {"a": torch.tensor(float("nan"))}, {"step": 2})
        text = "".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in lines)
        (tmp_path / name / "log.jsonl").write_text(text)
    found = list(differences(tmp_path / "straight", tmp_path / "resumed", 1))
    assert found == ["step 1 is logged only without a stop"]


def test_a_training_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    def train(run: Path, until: int) -> None:
        run.mkdir(exist_ok=True)
        (run / "log.jsonl").write_text("")

    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        verify_resume(train, tmp_path, 2)
