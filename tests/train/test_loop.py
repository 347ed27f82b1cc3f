import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, CoterieError
from coterie.eval.perplexity import score_tokens
from coterie.model import Transformer
from coterie.train.data import Batches, TokenFile
from coterie.train.initialise import muon_matrices
from coterie.train.loop import Trainer
from coterie.train.recipe import Balance, Data, Recipe, Run, Train
from coterie.train.state import load_state, save_state

TINY = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def trainer(
    out: Path, config: ModelConfig = TINY, load: float = 0.01, device: str = "cpu",
    dtype: torch.dtype = torch.float32, **train: Any,
) -> Trainer:  # fmt: skip
    train = {"steps": 6, "batch": 4, "sequence": 16, "lr": 1e-2, "warmup": 2} | train
    recipe = Recipe(
        model={}, data=Data(files=("x",)), train=Train(**train), balance=Balance(load=load), run=Run(save_every=100)
    )
    ids = np.random.default_rng(0).integers(3, 64, 4096).astype(np.uint32)
    ids[1::2] = (ids[::2] + 1) % 64  # every second token follows from the one before it
    steps, plan = recipe.train.steps, recipe.sequence_plan()
    batches = Batches([TokenFile("x", ids, 4096)], [], plan, steps, recipe.train.batch * plan[0][1], 1, 0)
    out.mkdir(exist_ok=True)
    place = torch.device(device)
    return Trainer(recipe, config, batches, dtype, place, out, lambda model: {"x": 1.0}, lambda record: None)


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


def test_not_a_number_stops_the_run_names_the_step_and_spoils_no_state(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(until=2)
    before = {k: v.clone() for k, v in run.optimizer.state().items()}
    with torch.no_grad():
        run.model.embed.weight.mul_(float("nan"))
    with pytest.raises(CoterieError, match="step 2: the loss"):
        run.run()
    again = trainer(tmp_path)
    assert again.resume() and again.step == 2 and len(log(tmp_path)) == 2
    after = again.optimizer.state()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k != "master/embed.weight")


def test_a_killed_run_logs_every_step_once(tmp_path: Path) -> None:
    """Steps after the last saved state are trained again, so their first lines, and half a line, are dropped."""
    trainer(tmp_path / "whole").run()
    first = trainer(tmp_path / "b")
    first.run(until=2)
    state = (tmp_path / "b" / "state.safetensors").read_bytes()
    first.run(until=4)
    (tmp_path / "b" / "state.safetensors").write_bytes(state)
    with (tmp_path / "b" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    second = trainer(tmp_path / "b")
    assert second.resume() and second.step == 2
    second.run()
    assert [r["step"] for r in log(tmp_path / "b")] == list(range(6))
    assert [r["loss"] for r in log(tmp_path / "b")] == [r["loss"] for r in log(tmp_path / "whole")]


@pytest.mark.parametrize("moment", ["forward", "update", "evaluation"])
def test_ctrl_c_at_any_moment_resumes_bit_for_bit(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    whole.run()
    held = {"forward": cut.model, "update": cut.optimizer, "evaluation": cut}[moment]
    name = {"forward": "forward", "update": "step", "evaluation": "evaluate"}[moment]
    plain, calls = getattr(held, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if moment == "evaluation" else 3):
            signal.raise_signal(signal.SIGINT)  # at the start of an update it must wait until its end
        return plain(*args, **kwargs)

    monkeypatch.setattr(held, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = trainer(tmp_path / "b")
    assert again.resume() and again.step == {"forward": 2, "update": 3, "evaluation": 6}[moment]
    again.run()
    assert [r["loss"] for r in log(tmp_path / "a")] == [r["loss"] for r in log(tmp_path / "b")]
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_interrupt_before_the_first_update_can_be_resumed(tmp_path: Path) -> None:
    """Then the optimizer has no moments yet."""
    trainer(tmp_path).save()
    again = trainer(tmp_path)
    assert again.resume() and again.step == 0
    again.run()
    assert len(log(tmp_path)) == 6


def test_state_of_other_text_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=1)
    other = trainer(tmp_path)
    other.batches.files = [TokenFile("y", other.batches.files[0].ids, 1)]
    with pytest.raises(CheckpointError, match="other text"):
        other.resume()


@pytest.mark.parametrize(
    ("meta", "tensors"), [(3, {}), ({"step": 1}, {}), (None, {"master/embed.weight": torch.zeros(2)})]
)
def test_a_state_that_is_none_is_refused(tmp_path: Path, meta: Any, tensors: dict[str, torch.Tensor]) -> None:
    run = trainer(tmp_path)
    run.save()
    path = tmp_path / "state.safetensors"
    save_state(path, tensors, load_state(path)[1] if meta is None else meta)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        run.resume()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_resumes_and_is_scored_on_a_gpu(tmp_path: Path, dtype: torch.dtype) -> None:
    run = trainer(tmp_path, device="cuda", dtype=dtype)
    run.run(until=3)
    again = trainer(tmp_path, device="cuda", dtype=dtype)
    assert again.resume()
    again.run()
    assert again.step == 6 and score_tokens(again.model, list(range(3, 40)), window=16).n_tokens == 37


def test_dense_model_and_window_and_length_phases_train(tmp_path: Path) -> None:
    fields = TINY.to_fields() | {"num_local_experts": None, "sliding_window": 8}
    dense = ModelConfig.from_fields(fields, where="test")
    run = trainer(tmp_path, config=dense, sequence=((0.0, 16), (0.5, 32)))
    run.run()
    assert [r["sequence"] for r in log(tmp_path)] == [16] * 3 + [32] * 3
    assert all(r["balance"] == 0.0 for r in log(tmp_path))


def test_muon_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, first = (trainer(tmp_path / n, optimizer="muon", steps=30, batch=16) for n in "ab")
    whole.run()
    first.run(until=10)
    second = trainer(tmp_path / "b", optimizer="muon", steps=30, batch=16)
    assert second.resume()
    second.run()
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    losses = [r["loss"] for r in log(tmp_path / "a")]
    assert losses[-1] < losses[0] - 0.5


def test_muon_leaves_routers_and_the_embedding_to_adamw() -> None:
    matrices = muon_matrices(Transformer(TINY, torch.float32))
    assert matrices["layers.0.attention.qkv.linear.weight"] == (16, 8, 8)
    assert matrices["layers.1.feed_forward.experts.gate_up"] == (8, 8)
    assert matrices["layers.1.feed_forward.experts.down"] == matrices["layers.0.attention.o.weight"] == ()
    assert len(matrices) == 2 * 4
