"""The training loop: batches in, updates out, a JSON line per step, state saved so that a killed run goes on.

The model trains in the dtype it will be run in, through the very modules that run it; the optimizer keeps float32
masters. What is minimised is in `objective.py`. Shapes: B sequences, S positions.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from coterie.config import ModelConfig
from coterie.errors import CoterieError, ResourceError
from coterie.model import Transformer
from coterie.train.bad_numbers import not_finite, write_bad_batch
from coterie.train.batches import Batches
from coterie.train.induction import plant_induction_heads
from coterie.train.initialise import initialise, muon_matrices
from coterie.train.interrupt import interrupt_later, interrupt_together
from coterie.train.log import Log
from coterie.train.mesh import Mesh
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.parallelise import gather, let_go, masters_dtype, parallelise
from coterie.train.peak import matrix_peak
from coterie.train.random_state import seed_random_states
from coterie.train.recipe import Recipe
from coterie.train.recompute import recompute_blocks
from coterie.train.schedule import learning_rate
from coterie.train.sharded_state import ShardedCheckpoints
from coterie.train.snapshot import require_same_run, restore, snapshot, spoilt
from coterie.train.state import State, read_meta
from coterie.train.telemetry import Telemetry, mean_bytes_per_token

__all__ = ["Trainer"]


class Trainer:
    """One run of a recipe. `evaluate(model) -> dict` is handed in, because evaluation lives in a higher layer.

    `fill` sets weights that are not random; `measure` adds to the records of steps with an evaluation. On several ranks
    each has a Trainer, and all call the same methods in the same order; rank 0 logs and reports.
    """

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
        *,
        fill: Callable[[Transformer], None] | None = None,
        measure: Callable[[Transformer], dict[str, Any]] = lambda model: {},
        mesh: Mesh | None = None,
    ):
        self.mesh, self.dtype = mesh or Mesh.single(device), dtype
        self.mesh.require_rows(recipe.rows_of_micro_batches())
        self.recipe, self.batches, self.out = recipe, batches, out
        self.evaluate, self.report, self.measure = evaluate, report, measure
        seed_random_states(recipe.train.seed)
        self.model = self._model(config, dtype, device, fill)
        self.objective = Objective(self.model, recipe.balance, self.mesh.sum)
        t = recipe.train
        muon = muon_matrices(self.model) if t.optimizer == "muon" else None
        self.optimizer = MasterOptimizer(
            self.model, betas=t.betas, weight_decay=t.weight_decay, muon=muon, reduce=self.mesh.sum
        )
        self.checkpoints = ShardedCheckpoints(out, self.mesh, self.optimizer.empty)
        self.step, self.seconds = 0, 0.0
        self.saved = -1  # the step of the checkpoint that was read or written last

    def _model(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, fill: Callable[[Transformer], None] | None
    ) -> Transformer:
        init = self.recipe.init
        model = Transformer(config, masters_dtype(dtype, self.mesh), device)
        initialise(model, std=init.std, seed=init.seed)
        if init.induction:
            plant_induction_heads(model.tensors(), config, std=init.std, seed=init.seed)
        if fill is not None:
            fill(model)
        return parallelise(recompute_blocks(model) if self.recipe.train.recompute else model, self.mesh, dtype)

    def resume(self) -> bool:
        """Go on from the newest good checkpoint of `out`; False where there is none.

        `checkpoints.passed_over` then says which newer ones were damaged. `CheckpointError` where it is of another run.
        """
        self.checkpoints.tidy()
        found = self.checkpoints.latest(self._read)
        if found is None:
            return False
        tensors, meta = found
        restore(tensors, self.model, self.optimizer, self.model.device, where=self.out)
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.saved = self.step
        return True

    def _read(self, folder: Path) -> State:
        """A checkpoint of this very run: tensors of another one would not even fit."""
        require_same_run(read_meta(folder), self._identity(), folder)
        return self.checkpoints.read(folder)

    def save(self) -> None:
        """A checkpoint of this step; `CoterieError`, and the older ones stay, where a number in it is not finite."""
        tensors = snapshot(self.model, self.optimizer, self.model.device)
        name = spoilt(tensors)
        if self.mesh.any(name is not None):
            raise CoterieError(
                f"after {self.step} steps {name!r} is not finite, so the state is not saved; give the recipe a smaller "
                f"[train] lr (now {self.recipe.train.lr:g}), and the same command goes on from the last good step"
            )
        self.checkpoints.save(self.step, tensors, {"step": self.step, "seconds": self.seconds} | self._identity())
        self.saved = self.step

    def _identity(self) -> dict[str, Any]:
        """What must stay as it was: a run that went on with other text, say, would not be the same run."""
        t = self.recipe.train
        plan = [list(p) for p in self.recipe.sequence_plan()]
        run = {"steps": t.steps, "batch": t.batch, "plan": plan, "seed": t.seed, "optimizer": t.optimizer}
        data = self.recipe.data
        run |= {"weights": list(data.weights), "documents": data.documents}
        if not self.recipe.init.is_random:
            run["init"] = self.recipe.init.identity()
        files = [[f.name, len(f.ids), *([f.digest[:12]] if f.digest else [])] for f in self.batches.files]
        return {"fields": {"model": self.model.config.to_fields()} | run, "data": files}

    def run(self, until: int | None = None) -> None:
        """To step `until` or the last one; on Ctrl-C, `kill` and errors the state is saved before they go on."""
        last = min(until or self.recipe.train.steps, self.recipe.train.steps)
        telemetry = self._telemetry()
        try:
            with self._log() as log, interrupt_together(self.mesh) as interrupted:
                while self.step < last:
                    self._one_step(log, telemetry)
                    interrupted()
            self._save_once()
        except ResourceError:  # the disk is full or gone: the last checkpoint stands
            raise
        except CoterieError:
            if self.mesh.n_ranks == 1:  # of several, the others may be elsewhere
                with suppress(CoterieError):  # the first error is the one to tell
                    self._save_once()
            raise
        except (KeyboardInterrupt, SystemExit):
            with interrupt_later():  # whoever presses Ctrl-C twice wants to keep the steps as well
                self._save_once()
            raise

    def _save_once(self) -> None:
        if self.saved != self.step:
            self.save()

    def _log(self) -> Log:
        return Log(self.out / "log.jsonl" if self.mesh.is_first else None, self.step)

    def _telemetry(self) -> Telemetry:
        files = [(len(f.ids), f.n_bytes) for f in self.batches.files]
        bytes_per_token = mean_bytes_per_token(files, self.recipe.data.weights)
        peak = matrix_peak(self.dtype, self.model.device) * self.mesh.n_ranks
        return Telemetry(self.recipe, self.model.config, peak=peak, bytes_per_token=bytes_per_token)

    def _one_step(self, log: Log, telemetry: Telemetry) -> None:
        """An update, its line in the log, and what is due after it; the log is never behind a saved state."""
        run, started = self.recipe.run, time.perf_counter()
        record = self._prepare()
        try:
            with interrupt_later():  # half an update must not be saved
                self._update(record, log)
                seconds = time.perf_counter() - started
                telemetry.add(record, self._counts, self.batches.tokens, seconds, self._n_counted)
            if self.step % run.eval_every == 0 or self.step == self.recipe.train.steps:
                record |= self._evaluate()
        finally:
            with interrupt_later():
                if self.step > record["step"]:
                    self.seconds += time.perf_counter() - started
                    record["seconds"] = round(self.seconds, 2)
                    log.write(record)
        if self.mesh.is_first:
            self.report(record)
        if self.step % run.save_every == 0:
            log.sync()
            self.save()

    def whole_model(self) -> Transformer | None:
        """The model in one piece, on rank 0 (all ranks take part); None on the others."""
        model = gather(self.model, self.mesh, self.dtype)
        return model if self.mesh.is_first else None

    def _evaluate(self) -> dict[str, Any]:
        """Without the noise that some routers have while they train."""
        self.model.eval()
        try:
            return {"valid": self.evaluate(self.model)} | (self.measure(self.model) if self.mesh.n_ranks == 1 else {})
        finally:
            self.model.train()
            let_go(self.model)

    def _prepare(self) -> dict[str, Any]:
        """The gradients of this step's batch, and the record of the step."""
        t = self.recipe.train
        lr = learning_rate(self.step, steps=t.steps, warmup=t.warmup, peak=t.lr, schedule=t.schedule, decay=t.decay)
        record = {"step": self.step, "lr": lr, "sequence": self.batches.sequence(self.step)}
        return record | self._gradients()

    def _update(self, record: dict[str, Any], log: Log) -> None:
        is_finite = math.isfinite(record["loss"])
        record["grad_norm"] = self.optimizer.step(record["lr"], self.recipe.train.clip) if is_finite else math.nan
        if not math.isfinite(record["grad_norm"]):
            raise self._bad_numbers(record, log)
        self.objective.after_update()
        self.step += 1

    def _bad_numbers(self, record: dict[str, Any], log: Log) -> CoterieError:
        """Write down which batch it was, in the log too, whose line goes when the step is trained again."""
        path, rows = self.out / f"bad-batch-{self.step}.json", self.batches.rows(self.step)
        error = not_finite(record, rows, path, self.recipe.train.lr)
        if self.mesh.is_first:
            write_bad_batch(path, record, rows, self.batches.batch(self.step)[0])
        log.write(record | {"stopped": str(error)})
        return error

    def _gradients(self) -> dict[str, float]:
        """Backward over the micro-batches of this step; its measures."""
        n_micro, device = self.recipe.train.accumulate, self.model.device
        self.optimizer.forget_gradients()  # of a step that was interrupted
        self.objective.start_step()
        batch = self.batches.batch(self.step)
        n_tokens = self._n_counted = max(1, int((batch.targets_BS >= 0).sum()))
        batch = batch.to(device)
        n_parts = n_micro * self.mesh.n_ranks
        for i, part in enumerate(batch.chunk(n_micro)):
            generator = self._generator(i * self.mesh.n_ranks + self.mesh.rank)
            mine = part.map(self.mesh.rows)
            self.objective.backward(*mine, n_tokens=n_tokens, share=1 / n_parts, generator=generator)
            self.optimizer.collect()
        measures, counts = self.objective.measures(), self.objective.counts
        self._counts = list(torch.stack(counts).cpu()) if counts else []  # now: a card is about to be busy updating
        return measures

    def _generator(self, part: int) -> torch.Generator:
        """For the noise of routers: a function of seed, step and part of the batch, so nothing has to be saved."""
        generator = torch.Generator(self.model.device)
        return generator.manual_seed(hash((self.recipe.train.seed, self.step, part)) % 2**63)
