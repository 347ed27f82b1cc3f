"""The training loop: batches in, updates out, a JSON line per step, state saved so that a killed run goes on.

The model trains in the dtype it will be run in, through the very modules that run it; the optimizer keeps float32
masters. Losses: cross-entropy per token, plus per sparse layer (mean over layers) load · balance + z · z-loss.
Shapes: T tokens, B sequences, S positions, D model width.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import CheckpointError, CoterieError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.routing.balance import expert_counts, load_balancing_loss, z_loss
from coterie.train.data import Batches
from coterie.train.induction import plant_induction_heads
from coterie.train.interrupt import interrupt_later
from coterie.train.log import Log
from coterie.train.loss import linear_cross_entropy
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Recipe
from coterie.train.schedule import learning_rate
from coterie.train.state import load_state, save_state

__all__ = ["Trainer", "initialise"]


def initialise(model: Transformer, *, std: float, seed: int) -> None:
    """Norms 1, matrices normal(0, std); the two that write to the residual stream std / √(2L) (GPT-2, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0)
                continue
            scale = residual if name.endswith(("attention.o.weight", "down", "down.weight")) else std
            p.copy_(torch.empty(p.shape).normal_(0.0, scale, generator=generator))


def muon_matrices(model: Transformer) -> dict[str, tuple[int, ...]]:
    """What Muon may update: the layers' matrices, but for routers, and the rows at which fused ones are cut apart."""
    c = model.config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    cuts = {"qkv.linear.weight": (q, kv, kv), "gate_up": (c.intermediate_size,) * 2}
    cuts["gate_up.linear.weight"] = cuts["gate_up"]
    return {
        name: next((rows for end, rows in cuts.items() if name.endswith(end)), ())
        for name, p in model.named_parameters()
        if name.startswith("layers.") and p.ndim > 1 and "router" not in name
    }


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
        self.model = Transformer(config, dtype, device)
        initialise(self.model, std=recipe.init.std, seed=recipe.init.seed)
        if recipe.init.induction:
            plant_induction_heads(self.model.tensors(), config, std=recipe.init.std, seed=recipe.init.seed)
        t = recipe.train
        muon = muon_matrices(self.model) if t.optimizer == "muon" else None
        self.optimizer = MasterOptimizer(self.model, betas=t.betas, weight_decay=t.weight_decay, muon=muon)
        self.step, self.seconds = 0, 0.0

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
                record["valid"] = self.evaluate(self.model)
        finally:
            if self.step > record["step"]:
                self.seconds += time.perf_counter() - started
                record["seconds"] = round(self.seconds, 2)
                log.write(record)
        self.report(record)
        if self.step % run.save_every == 0:
            self.save()

    def _prepare(self) -> dict[str, Any]:
        """The gradients of this step's batch, and the record of the step."""
        self.optimizer.forget_gradients()  # of a step that was interrupted
        t = self.recipe.train
        ids_BS, targets_BS = self.batches.batch(self.step)
        lr = learning_rate(self.step, steps=t.steps, warmup=t.warmup, peak=t.lr, schedule=t.schedule)
        record: dict[str, Any] = {"step": self.step, "lr": lr, "sequence": ids_BS.shape[1]}
        return record | self._gradients(ids_BS.to(self.model.device), targets_BS.to(self.model.device))

    def _update(self, record: dict[str, Any]) -> None:
        is_finite = math.isfinite(record["loss"])
        record["grad_norm"] = self.optimizer.step(record["lr"], self.recipe.train.clip) if is_finite else math.nan
        if not math.isfinite(record["grad_norm"]):
            raise CoterieError(f"step {self.step}: the loss or its gradient is not finite; try a smaller lr")
        self.step += 1

    def _gradients(self, ids_BS: Tensor, targets_BS: Tensor) -> dict[str, float]:
        """Backward over the micro-batches; every counted token weighs the same, however a step is cut."""
        n_micro = self.recipe.train.accumulate
        tokens_of_a_part = int((targets_BS >= 0).sum()) / n_micro
        sums: dict[str, float] = {}
        for ids, targets in zip(ids_BS.chunk(n_micro), targets_BS.chunk(n_micro), strict=True):
            parts, overload = self._losses(ids, targets, tokens_of_a_part)
            b = self.recipe.balance
            total = parts["loss"] + b.load * parts["balance"] + b.z * parts["z"]
            (total / n_micro).backward()  # type: ignore[no-untyped-call]
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / n_micro
            sums["max_vio"] = max(sums.get("max_vio", 0.0), overload)
        return sums

    def _losses(self, ids_BS: Tensor, targets_BS: Tensor, n_tokens: float) -> tuple[dict[str, Tensor], float]:
        B, S = ids_BS.shape
        positions_T = torch.arange(S, device=ids_BS.device).repeat(B)
        cache = WholeSequences(B, self.model.config.sliding_window)
        output = self.model(ids_BS.flatten(), positions_T, cache)
        head = self.model.head
        hidden_TD, weight_VD = head.norm(output.hidden_TD), head.get_parameter("linear.weight")
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_BS.flatten(), self.model.dtype) / n_tokens
        zero = loss.new_zeros(())
        n_layers = max(1, len(output.routings))
        balance = sum((load_balancing_loss(r) for r in output.routings), zero) / n_layers
        z = sum((z_loss(r) for r in output.routings), zero) / n_layers
        worst = max((_max_violation(expert_counts(r)) for r in output.routings), default=0.0)
        return {"loss": loss, "balance": balance, "z": z}, worst


def _max_violation(counts_E: Tensor) -> float:
    """MaxVio: how far the busiest expert is above its fair share (arXiv 2408.15664, eq. 4)."""
    return float(counts_E.max() / counts_E.mean().clamp(min=1e-9) - 1)
