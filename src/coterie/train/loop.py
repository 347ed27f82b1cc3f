"""The training loop: batches in, updates out, a JSON line per step, state saved so that a killed run goes on.

The model trains in the dtype it will be run in, through the very modules that run it; the optimizer keeps float32
masters. What is minimised is in `objective.py`. Shapes: B sequences, S positions.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, CoterieError
from coterie.model import Transformer
from coterie.train.data import Batches
from coterie.train.induction import plant_induction_heads
from coterie.train.initialise import initialise, muon_matrices
from coterie.train.interrupt import interrupt_later
from coterie.train.log import Log
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Recipe
from coterie.train.recompute import recompute_blocks
from coterie.train.schedule import learning_rate
from coterie.train.state import load_state, save_state

__all__ = ["Trainer"]


class Trainer:
    """One run of a recipe. `evaluate(model) -> dict` is handed in, because evaluation lives in a higher layer."""

    def __init__(
        self,
        recipe: Recipe,
        config: ModelConfig,
        batches: Batches,
        dtype: torch.dtype,
        device: torch.device,
        out: Path,
        evaluate: Callable[[Transformer], dict[str, float]],
        report: Callable[[dict[str, Any]], None],
    ):
        self.recipe, self.batches, self.out = recipe, batches, out
        self.evaluate, self.report = evaluate, report
        self.model = self._model(config, dtype, device)
        self.objective = Objective(self.model, recipe.balance)
        t = recipe.train
        muon = muon_matrices(self.model) if t.optimizer == "muon" else None
        self.optimizer = MasterOptimizer(self.model, betas=t.betas, weight_decay=t.weight_decay, muon=muon)
        self.step, self.seconds = 0, 0.0

    def _model(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
        init = self.recipe.init
        model = Transformer(config, dtype, device)
        initialise(model, std=init.std, seed=init.seed)
        if init.induction:
            plant_induction_heads(model.tensors(), config, std=init.std, seed=init.seed)
        return recompute_blocks(model) if self.recipe.train.recompute else model

    def resume(self) -> bool:
        """Go on from `out/state.safetensors`; False where there is none."""
        path = self.out / "state.safetensors"
        if not path.exists():
            return False
        tensors, meta = load_state(path)
        mine = self._identity()
        if (
            not isinstance(meta, dict)
            or not {"step", "seconds", "fields"} <= meta.keys()
            or type(meta["fields"]) is not dict
        ):
            raise CheckpointError(f"{path} is not the state of a training run; start again with --fresh")
        if {"optimizer": "adamw"} | meta["fields"] != mine or meta.get("data", self._data()) != self._data():
            raise CheckpointError(
                f"{path} belongs to another recipe or other text; choose another [run] out, or start again with --fresh"
            )
        self.optimizer.load_state(tensors, where=path)
        self.step, self.seconds = meta["step"], meta["seconds"]
        return True

    def save(self) -> None:
        meta = {"step": self.step, "seconds": self.seconds, "fields": self._identity(), "data": self._data()}
        save_state(self.out / "state.safetensors", self.optimizer.state(), meta)

    def _identity(self) -> dict[str, Any]:
        t = self.recipe.train
        plan = [list(p) for p in self.recipe.sequence_plan()]
        fields = self.model.config.to_fields()
        run = {"steps": t.steps, "batch": t.batch, "plan": plan, "seed": t.seed, "optimizer": t.optimizer}
        return {"model": fields} | run

    def _data(self) -> list[Any]:
        """What the batches are drawn from: a run that went on with other text would not be the same run."""
        return [[f.name, len(f.ids)] for f in self.batches.files]

    def run(self, until: int | None = None) -> None:
        """To step `until` or the last one; on Ctrl-C the state is saved before the interrupt goes on."""
        last = min(until or self.recipe.train.steps, self.recipe.train.steps)
        try:
            with Log(self.out / "log.jsonl", self.step) as log:
                while self.step < last:
                    self._one_step(log)
        except (KeyboardInterrupt, CoterieError):
            self.save()
            raise
        self.save()

    def _one_step(self, log: Log) -> None:
        """An update, its line in the log, and what is due after it; the log is never behind a saved state."""
        run, started = self.recipe.run, time.perf_counter()
        record = self._prepare()
        try:
            with interrupt_later():  # half an update must not be saved
                self._update(record)
                record["tokens_per_s"] = self.batches.tokens / (time.perf_counter() - started)
            if self.step % run.eval_every == 0 or self.step == self.recipe.train.steps:
                record["valid"] = self._evaluate()
        finally:
            if self.step > record["step"]:
                self.seconds += time.perf_counter() - started
                record["seconds"] = round(self.seconds, 2)
                log.write(record)
        self.report(record)
        if self.step % run.save_every == 0:
            self.save()

    def _evaluate(self) -> dict[str, float]:
        """Without the noise that some routers have while they train."""
        self.model.eval()
        try:
            return self.evaluate(self.model)
        finally:
            self.model.train()

    def _prepare(self) -> dict[str, Any]:
        """The gradients of this step's batch, and the record of the step."""
        t = self.recipe.train
        lr = learning_rate(self.step, steps=t.steps, warmup=t.warmup, peak=t.lr, schedule=t.schedule, decay=t.decay)
        record = {"step": self.step, "lr": lr, "sequence": self.batches.sequence(self.step)}
        return record | self._gradients()

    def _update(self, record: dict[str, Any]) -> None:
        is_finite = math.isfinite(record["loss"])
        record["grad_norm"] = self.optimizer.step(record["lr"], self.recipe.train.clip) if is_finite else math.nan
        if not math.isfinite(record["grad_norm"]):
            raise CoterieError(f"step {self.step}: the loss or its gradient is not finite; try a smaller lr")
        self.step += 1

    def _gradients(self) -> dict[str, float]:
        """Backward over the micro-batches of this step; its measures."""
        n_micro, device = self.recipe.train.accumulate, self.model.device
        self.optimizer.forget_gradients()  # of a step that was interrupted
        self.objective.start_step()
        ids_BS, targets_BS = (t.to(device) for t in self.batches.batch(self.step))
        n_tokens = max(1, int((targets_BS >= 0).sum()))
        for i, (ids, targets) in enumerate(zip(ids_BS.chunk(n_micro), targets_BS.chunk(n_micro), strict=True)):
            generator = self._generator(i)
            self.objective.backward(ids, targets, n_tokens=n_tokens, share=1 / n_micro, generator=generator)
            self.optimizer.collect()
        return self.objective.measures()

    def _generator(self, micro: int) -> torch.Generator:
        """For the noise of routers: a function of seed, step and micro-batch, so nothing has to be saved."""
        generator = torch.Generator(self.model.device)
        return generator.manual_seed(hash((self.recipe.train.seed, self.step, micro)) % 2**63)
