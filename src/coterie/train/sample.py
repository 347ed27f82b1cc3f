"""A few real training steps of a recipe's shape: seconds, the peak of memory, what is kept for backward.

The pieces are the trainer's (objective, optimizer, recompute), the token ids are random. `train.measure` runs this as
`python -m coterie.train.sample`, which answers one JSON request: the peak of a process that did nothing else.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coterie.config import ModelConfig
from coterie.kernels.sparse_training import slice_step
from coterie.model import Transformer
from coterie.model.norm import Projection, RMSNorm
from coterie.routing import Assignment
from coterie.train.initialise import initialise, muon_matrices
from coterie.train.memory import keep_freed_memory
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Recipe, read_recipe
from coterie.train.recompute import recompute_blocks

__all__ = ["Sample", "sample"]

_DOCUMENTS = 4  # in a row of masked documents
_PATIENCE = 20.0  # seconds: a micro-batch that takes longer is cut to fewer rows


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Steps of a model of `layers` layers, in micro-batches of `rows` rows of `sequence` positions: seconds, bytes."""

    layers: int
    rows: int
    sequence: int
    micro_seconds: float  # forward and backward of a micro-batch, median
    optimizer_seconds: float
    micro_batches: int  # how many were timed
    framework: int  # the peak before there was a model: Python, torch, its threads' buffers
    peak: int
    is_settled: bool  # whether the peak had stopped rising
    kept: dict[str, int]  # activations by part, as `footprint.Activations` has them; as if nothing were recomputed


def sample(recipe: Recipe, config: ModelConfig, dtype: torch.dtype, device: torch.device, *,
           rows: int, sequence: int, seconds: float) -> Sample:  # fmt: skip
    """Run steps of the recipe with the model of `config` for about `seconds`; fewer `rows` where so many take long."""
    torch.zeros(1, device=device)
    framework = _peak(device)
    steps = _Steps(recipe, config, dtype, device, sequence)
    first, second = _kept(steps, 1), _kept(steps, 2)
    if recipe.train.recompute:
        recompute_blocks(steps.model)
    rows = min(rows, max(1, int(_PATIENCE / max(steps.one_micro_batch(1), 1e-6))))
    steps.one_step(rows)  # allocates moments and gradients
    micro: list[float] = []
    optimizer: list[float] = []
    until = time.perf_counter() + seconds
    while not micro or time.perf_counter() < until:
        took, update = steps.one_step(rows)
        micro += took
        optimizer.append(update)
    _meet_uneven_experts(steps, rows, seconds)
    is_settled = _settle(steps, rows, 2 * seconds)
    kept = {part: n + (rows - 1) * (second[part] - n) for part, n in first.items()}
    return Sample(
        layers=config.num_hidden_layers, rows=rows, sequence=sequence, micro_seconds=statistics.median(micro),
        optimizer_seconds=statistics.median(optimizer), micro_batches=len(micro), framework=framework,
        peak=_peak(device), is_settled=is_settled, kept=kept,
    )  # fmt: skip


class _Steps:
    """A model with its objective and optimizer, as the trainer has them."""

    def __init__(self, recipe: Recipe, config: ModelConfig, dtype: torch.dtype, device: torch.device, sequence: int):
        t = recipe.train
        self.model, self.device, self.sequence = Transformer(config, dtype, device), device, sequence
        initialise(self.model, std=recipe.init.std, seed=recipe.init.seed)
        muon = muon_matrices(self.model) if t.optimizer == "muon" else None
        self.optimizer = MasterOptimizer(self.model, betas=t.betas, weight_decay=t.weight_decay, muon=muon)
        self.objective, self.train = Objective(self.model, recipe.balance), t
        self.documents_S = None  # where rows are masked, each is taken to hold a few documents
        if recipe.data.documents == "masked":
            self.documents_S = torch.arange(sequence, device=device) * _DOCUMENTS // sequence
        self.generator = torch.Generator(device).manual_seed(0)

    def one_step(self, rows: int) -> tuple[list[float], float]:
        """Seconds of each micro-batch, two where a step has several, and of the update."""
        self.objective.start_step()
        micro = [self.one_micro_batch(rows) for _ in range(min(2, self.train.accumulate))]
        return micro, self._timed(lambda: self.optimizer.step(1e-6, self.train.clip))

    def one_micro_batch(self, rows: int) -> float:
        """Seconds."""
        vocabulary, shape = self.model.config.vocab_size, (rows, self.sequence)
        ids_BS = torch.randint(vocabulary, shape, device=self.device, generator=self.generator)
        return self._timed(lambda: self._gradients(ids_BS))

    def _gradients(self, ids_BS: Tensor) -> None:
        documents_BS = None if self.documents_S is None else self.documents_S.expand_as(ids_BS)
        self.objective.backward(
            ids_BS, ids_BS, documents_BS, n_tokens=ids_BS.numel(), share=1.0, generator=self.generator
        )
        self.optimizer.collect()

    def _timed(self, action: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _meet_uneven_experts(steps: _Steps, rows: int, seconds: float) -> None:
    """What a run of thousands of steps meets and a few even ones do not: experts with up to four times their share.

    On a CPU torch keeps code for the last thousand shapes of its bfloat16 products, hundreds of megabytes in all, and
    every number of rows is a shape of its own.
    """
    model, config = steps.model, steps.model.config
    one = torch.zeros(1, config.hidden_size, dtype=model.dtype, device=model.device)
    if config.num_local_experts is None or config.router.kind in ("soft", "dense") or slice_step(one) == 1:
        return
    experts, E = model.get_submodule("layers.0.feed_forward.experts"), config.num_local_experts
    pairs, until = rows * steps.sequence * config.num_experts_per_tok, time.perf_counter() + seconds
    for n in range(slice_step(one), min(pairs, 4 * pairs // E) + 1, slice_step(one)):
        x_nD = torch.zeros(n, config.hidden_size, dtype=model.dtype, requires_grad=True)
        ids_n1, weights_n1 = torch.zeros(n, 1, dtype=torch.int32), torch.zeros(n, 1)
        experts(x_nD, Assignment(ids_n1, weights_n1, torch.zeros(n, E), {})).sum().backward()
        if time.perf_counter() > until:
            break
    steps.optimizer.forget_gradients()


def _settle(steps: _Steps, rows: int, seconds: float) -> bool:
    """Steps until the peak of memory stays where it is; False where it still grew after `seconds`.

    The moments of a large model, say, are touched for the first time in the second update.
    """
    until, before = time.perf_counter() + seconds, 0
    while _peak(steps.device) > 1.005 * before:
        if time.perf_counter() > until:
            return False
        before = _peak(steps.device)
        steps.one_step(rows)
    return True


def _kept(steps: _Steps, rows: int) -> dict[str, int]:
    """Bytes that a forward pass keeps for backward, by part; each storage counts once, parameters never."""
    parts = dict.fromkeys(("attention", "experts", "norms", "loss"), 0)
    seen = {p.untyped_storage().data_ptr() for p in steps.model.parameters()}
    held, inside = [], ["loss"]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(storage)  # or its address would come again
            parts[inside[-1]] += storage.nbytes()
        return tensor

    hooks = []
    for name, module in steps.model.named_modules():
        if part := _part(name, module):
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: inside.append(part)))
            hooks.append(module.register_forward_hook(lambda *_: _leave(inside)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        steps.objective.start_step()
        steps.one_micro_batch(rows)
    for hook in hooks:
        hook.remove()
    steps.optimizer.forget_gradients()
    return parts


def _part(name: str, module: nn.Module) -> str | None:
    """Of `footprint.Activations`; None for modules that only hold others."""
    if isinstance(module, RMSNorm | Projection):
        return "norms"
    if ".attention" in name:
        return "attention"
    return "experts" if ".feed_forward" in name else None


def _leave(inside: list[str]) -> None:
    inside.pop()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:  # ru_maxrss would begin with what the parent of this process had
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _answer() -> None:
    request = json.load(sys.stdin)
    keep_freed_memory()
    config = ModelConfig.from_fields(request["config"], where="the request")
    found = sample(
        read_recipe(Path(request["recipe"])), config, getattr(torch, request["dtype"]), torch.device(request["device"]),
        rows=request["rows"], sequence=request["sequence"], seconds=request["seconds"],
    )  # fmt: skip
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _answer()
