import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, CoterieError
from coterie.train.data import Batches, TokenFile
from coterie.train.loop import Trainer
from coterie.train.recipe import Balance, Data, Recipe, Run, Train

TINY = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def trainer(out: Path, config: ModelConfig = TINY, load: float = 0.01, **train: Any) -> Trainer:
    train = {"steps": 6, "batch": 4, "sequence": 16, "lr": 1e-2, "warmup": 2} | train
    recipe = Recipe(
        model={}, data=Data(files=("x",)), train=Train(**train), balance=Balance(load=load), run=Run(save_every=100)
    )
    ids = np.random.default_rng(0).integers(3, 64, 4096).astype(np.uint32)
    ids[1::2] = (ids[::2] + 1) % 64  # every second token follows from the one before it
    steps, plan = recipe.train.steps, recipe.sequence_plan()
    batches = Batches([TokenFile("x", ids, 4096)], [], plan, steps, recipe.train.batch * plan[0][1], 1, 0)
    out.mkdir(exist_ok=True)
    dtype, cpu = torch.float32, torch.device("cpu")
    return Trainer(recipe, config, batches, dtype, cpu, out, lambda model: {"x": 1.0}, lambda record: None)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_learns_what_can_be_learnt(tmp_path: Path) -> None:
    """Half the tokens are random among 61 (4.1 nats), half follow from the last (0): the floor is about 2.06."""
    run = trainer(tmp_path, steps=150, batch=16, lr=2e-2)
    run.run()
    losses = [r["loss"] for r in log(tmp_path)]
    assert losses[0] == pytest.approx(np.log(64), abs=0.1)
    assert np.mean(losses[-5:]) < 2.6


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, first = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    whole.run()
    first.run(until=3)
    second = trainer(tmp_path / "b")
    assert second.resume() and second.step == 3
    second.run()
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [r["loss"] for r in log(tmp_path / "a")] == [r["loss"] for r in log(tmp_path / "b")]


def test_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=1)
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        trainer(tmp_path, steps=9).resume()


def test_interrupt_saves_the_state(tmp_path: Path) -> None:
    run = trainer(tmp_path)

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            raise KeyboardInterrupt

    run.report = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.run()
    again = trainer(tmp_path)
    assert again.resume() and again.step == 3


def test_micro_batches_change_nothing_but_the_balance_scope(tmp_path: Path) -> None:
    """Balance is measured per micro-batch, so it is off here; the rest must not see how a step is cut."""
    whole, cut = trainer(tmp_path / "a", load=0.0), trainer(tmp_path / "b", load=0.0, accumulate=4)
    whole.run()
    cut.run()
    for p, q in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=2e-3)


def test_not_a_number_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.embed[5:] = float("nan")
    with pytest.raises(CoterieError, match="step 0: the loss"):
        run.run()


def test_dense_model_and_window_and_length_phases_train(tmp_path: Path) -> None:
    fields = TINY.to_fields() | {"num_local_experts": None, "sliding_window": 8}
    dense = ModelConfig.from_fields(fields, where="test")
    run = trainer(tmp_path, config=dense, sequence=((0.0, 16), (0.5, 32)))
    run.run()
    assert [r["sequence"] for r in log(tmp_path)] == [16] * 3 + [32] * 3
    assert all(r["balance"] == 0.0 for r in log(tmp_path))
