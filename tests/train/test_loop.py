import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, CoterieError, ResourceError
from coterie.eval.perplexity import score_tokens
from coterie.model import Transformer
from coterie.train.batches import Batches
from coterie.train.initialise import muon_matrices
from coterie.train.log import Log
from coterie.train.loop import Trainer
from coterie.train.recipe import Balance, Data, Recipe, Run, Train
from coterie.train.snapshot import snapshot
from coterie.train.state import checkpoint_folder
from coterie.train.tokens import TokenFile

TINY = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def trainer(
    out: Path, config: ModelConfig = TINY, load: float = 0.01, bias: float = 0.0, device: str = "cpu",
    dtype: torch.dtype = torch.float32, **train: Any,
) -> Trainer:  # fmt: skip
    train = {"steps": 6, "batch": 4, "sequence": 16, "lr": 1e-2, "warmup": 2} | train
    recipe = Recipe(
        model={}, data=Data(files=("x",)), train=Train(**train), balance=Balance(load=load, bias=bias),
        run=Run(save_every=100),
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(3, 64, 4096).astype(np.uint32)
    ids[1::2] = (ids[::2] + 1) % 64  # every second token follows from the one before it
    steps, plan = recipe.train.steps, recipe.sequence_plan()
    batches = Batches([TokenFile("x", ids, 4096)], [], plan, steps, recipe.train.batch * plan[0][1], 1, 0)
    out.mkdir(exist_ok=True)
    place = torch.device(device)
    return Trainer(recipe, config, batches, dtype, place, out, lambda model: {"x": 1.0}, lambda record: None)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_state(a: Trainer, b: Trainer) -> None:
    """Parameters, moments, buffers and random states, bit for bit."""
    first, second = (snapshot(t.model, t.optimizer, t.model.device) for t in (a, b))
    assert first.keys() == second.keys() and any(name.startswith("exp_avg_sq/") for name in first)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


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
    assert_same_state(whole, second)
    assert [r["loss"] for r in log(tmp_path / "a")] == [r["loss"] for r in log(tmp_path / "b")]


@pytest.mark.parametrize(
    ("kind", "bias"), [("sigmoid_bias", 0.01), ("noisy_topk", 0.0), ("sparsemixer_v2", 0.0), ("gshard", 0.0)]
)
def test_the_noise_and_the_bias_of_routers_are_resumed_bit_for_bit(tmp_path: Path, kind: str, bias: float) -> None:
    config = ModelConfig.from_fields(TINY.to_fields() | {"router": {"kind": kind}}, where="test")
    whole, first, second = (trainer(tmp_path / n, config=config, bias=bias, accumulate=2) for n in ("a", "b", "b"))
    whole.run()
    first.run(until=3)
    assert second.resume() and second.step == 3
    second.run()
    assert_same_state(whole, second)
    states = snapshot(second.model, second.optimizer, second.model.device)
    assert any(name.startswith("buffer/") and bool(t.any()) for name, t in states.items()) == (kind == "sigmoid_bias")


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


def test_a_second_ctrl_c_does_not_cost_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the state is saved because of the first one, and waits until that is done."""
    run = trainer(tmp_path)
    plain = run.checkpoints.save

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    def interrupted_save(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        plain(*args)

    run.report = interrupt
    monkeypatch.setattr(run.checkpoints, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.saved == 3 and trainer(tmp_path).resume()


def test_micro_batches_change_nothing_but_the_balance_scope(tmp_path: Path) -> None:
    """Balance is measured per micro-batch, so it is off here; the rest must not see how a step is cut."""
    whole, cut = trainer(tmp_path / "a", load=0.0), trainer(tmp_path / "b", load=0.0, accumulate=4)
    whole.run()
    cut.run()
    for p, q in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=2e-3)


def test_not_a_number_stops_the_run_names_the_batch_and_keeps_the_last_good_step(tmp_path: Path) -> None:
    """A gradient that is none, at step 3, after a save at step 2: nothing is lost and no weight is touched."""
    run, whole = trainer(tmp_path / "b"), trainer(tmp_path / "a")
    whole.run()
    run.run(until=2)
    plain, calls = run.model.forward, []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        output = plain(*args, **kwargs)
        return dataclasses.replace(output, hidden_TD=output.hidden_TD * (float("nan") if len(calls) == 2 else 1.0))

    run.model.forward = spoilt  # type: ignore[method-assign]
    with pytest.raises(
        CoterieError, match=r"step 3: the loss is nan; it changed no weight; .*rows: 4 of x.*bad-batch-3"
    ):
        run.run()
    lines = log(tmp_path / "b")
    assert (
        len(lines) == 4 and lines[3]["step"] == 3 and lines[3]["loss"] is None and "loss is nan" in lines[3]["stopped"]
    )
    bad = json.loads((tmp_path / "b" / "bad-batch-3.json").read_text())
    assert bad["rows"] == run.batches.rows(3) and bad["ids"] == run.batches.batch(3)[0].tolist()
    again = trainer(tmp_path / "b")
    assert again.resume() and again.step == 3
    again.run()
    assert [r["loss"] for r in log(tmp_path / "a")] == [r["loss"] for r in log(tmp_path / "b")]
    assert_same_state(whole, again)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(until=2)
    run.checkpoints.save(1, {}, {})  # so that a wrong save would drop it
    with torch.no_grad():
        run.model.embed.weight.mul_(float("nan"))
    with pytest.raises(CoterieError, match="step 2: the loss is nan"):
        run.run()
    with pytest.raises(CoterieError, match=r"after 2 steps 'master/embed.weight' is not finite"):
        run.save()
    again = trainer(tmp_path)
    assert again.resume() and again.step == 2


def test_a_killed_run_logs_every_step_once(tmp_path: Path) -> None:
    """Steps after the last saved state are trained again, so their first lines, and half a line, are dropped."""
    trainer(tmp_path / "whole").run()
    first = trainer(tmp_path / "b")
    first.run(until=2)
    first.run(until=4)
    shutil.rmtree(checkpoint_folder(tmp_path / "b", 4))
    with (tmp_path / "b" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    second = trainer(tmp_path / "b")
    assert second.resume() and second.step == 2
    second.run()
    assert [r["step"] for r in log(tmp_path / "b")] == list(range(6))
    assert [r["loss"] for r in log(tmp_path / "b")] == [r["loss"] for r in log(tmp_path / "whole")]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    first = trainer(tmp_path / "b")
    first.run(until=2)
    first.run(until=4)
    (checkpoint_folder(tmp_path / "b", 4) / "state.safetensors").write_bytes(b"")
    second = trainer(tmp_path / "b")
    assert second.resume() and second.step == 2
    assert (
        len(second.checkpoints.passed_over) == 1
        and "state.safetensors has 0 bytes" in second.checkpoints.passed_over[0]
    )
    second.run()
    assert [r["loss"] for r in log(tmp_path / "b")] == [r["loss"] for r in log(tmp_path / "whole")]


MOMENTS = {  # what Ctrl-C comes at the start of, at which call of it, and the step that is then resumed
    "forward": (lambda t: t.model, "forward", 3, 2),
    "update": (lambda t: t.optimizer, "step", 3, 3),  # it waits for the end of the update
    "log": (lambda t: Log, "write", 3, 3),
    "save": (lambda t: t.checkpoints, "save", 1, 6),
    "evaluation": (lambda t: t, "evaluate", 1, 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_resumes_bit_for_bit(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    whole.run()
    owner, name, number, step = MOMENTS[moment]
    held = owner(cut)
    plain, calls = getattr(held, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return plain(*args, **kwargs)

    monkeypatch.setattr(held, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    monkeypatch.undo()
    again = trainer(tmp_path / "b")
    assert again.resume() and again.step == step
    again.run()
    assert [r["loss"] for r in log(tmp_path / "a")] == [r["loss"] for r in log(tmp_path / "b")]
    assert_same_state(whole, again)


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
    other.batches.files = [dataclasses.replace(other.batches.files[0], name="y")]
    with pytest.raises(CheckpointError, match="other text: x with 4,096 tokens there and y with 4,096 tokens here"):
        other.resume()


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=1)
    other = ModelConfig.from_fields(TINY.to_fields() | {"num_local_experts": 8}, where="test")
    with pytest.raises(CheckpointError, match=r"another model: num_local_experts is 4 there and 8 here.*--fresh"):
        trainer(tmp_path, config=other).resume()


def test_kill_saves_too(tmp_path: Path) -> None:
    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    run = trainer(tmp_path)
    run.report = lambda record: signal.raise_signal(signal.SIGTERM) if record["step"] == 2 else None
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit):
            run.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    again = trainer(tmp_path)
    assert again.resume() and again.step == 3


def test_whatever_write_of_a_step_the_disk_is_full_at_the_run_goes_on(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[Any]]
) -> None:
    """Every operation on the disk of step k+1, its log and its checkpoint, in turn: then k or k+1 is resumed."""
    whole, first = trainer(tmp_path / "whole"), trainer(tmp_path / "first")
    first.run(until=2)
    found, n = [], 0
    while True:
        out = tmp_path / str(n)
        shutil.copytree(tmp_path / "first", out)
        run = trainer(out)
        assert run.resume()
        with full_disk(n) as disk:
            try:
                run.run(until=3)
            except ResourceError as e:
                assert "the disk is full" in str(e)
        again = trainer(out)
        assert again.resume()
        found.append(again.step)
        if disk.left >= 0:
            break
        if n % 10 == 0:
            again.run(until=4)
            whole.run(until=4)
            assert [r["loss"] for r in log(out)] == [r["loss"] for r in log(tmp_path / "whole")]
            assert_same_state(whole, again)
        n += 1
    assert n > 12 and found[0] == 2 and found[-1] == 3 and set(found) == {2, 3}


@pytest.mark.parametrize("n_lines", [0, 2])
def test_a_log_that_cannot_be_written_leaves_no_state_that_it_does_not_know(tmp_path: Path, n_lines: int) -> None:
    run = trainer(tmp_path)
    run.run(until=1)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "log.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * (n_lines + 1) + 20, hard))
    try:
        with pytest.raises(ResourceError, match=r"log\.jsonl cannot be written"):
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = trainer(tmp_path)
    assert again.resume() and again.step == 1
    again.run()
    assert [r["step"] for r in log(tmp_path)] == list(range(6))


@pytest.mark.parametrize(
    "meta",
    [{"step": 1}, {"step": 1, "seconds": 0.0, "fields": 3}, {"step": "1", "seconds": 0.0, "fields": {"model": {}}}],
)
def test_a_state_that_is_none_is_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    run = trainer(tmp_path)
    run.checkpoints.save(1, {}, meta)
    with pytest.raises(CheckpointError, match="is not the state of a training run"):
        run.resume()


def test_a_state_without_a_tensor_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save()
    found = run.checkpoints.latest()
    assert found is not None
    run.checkpoints.save(1, {"master/embed.weight": torch.zeros(2)}, found[1])
    with pytest.raises(CheckpointError, match=r"embed.weight' .*shape \[2\], expected .*\[64, 16\]"):
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
