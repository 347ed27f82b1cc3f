"""What a recipe will cost before it is run: parameters, operations, memory by part, time, loss, and what to change.

Pure arithmetic on a recipe, a config and, where there is one, a measurement (`train.measure`). Sizes are bytes, times
seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from coterie.config import ModelConfig
from coterie.sizes import active_parameters
from coterie.train.corpus import Corpus, shares
from coterie.train.footprint import Activations, Footprint, footprint
from coterie.train.plan_advice import advice, text_warnings
from coterie.train.recipe import Recipe
from coterie.train.sample import Sample
from coterie.train.scaling import (
    Prediction,
    chinchilla_optimum,
    effective_tokens,
    predict_losses,
    upcycling_bounds,
)
from coterie.train.telemetry import training_operations

__all__ = ["Memory", "Phase", "Plan", "Timing", "make_plan", "planned_memory", "planned_seconds"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The highest moment of a step. `rest` is what the parts leave of the measured peak: temporaries, allocator."""

    parts: Footprint
    framework: int  # Python and torch; 0 unless measured
    rest: int  # 0 unless measured
    peak: int
    is_measured: bool  # else the formula alone
    available: int

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of the run with rows of one length."""

    sequence: int
    steps: int
    rows: int  # of a micro-batch
    operations: float  # of a step
    seconds: float | None  # of a step; None unless measured


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of the whole run."""

    steps: float
    scoring: float  # the valid files while training and at the end: a third of training's time per token

    @property
    def total(self) -> float:
        return self.steps + self.scoring


@dataclass(frozen=True, kw_only=True)
class Plan:
    parameters: int
    active: int
    tokens: int
    phases: list[Phase]
    operations: float  # of the run
    memory: Memory
    timing: Timing | None
    corpora: list[Corpus]
    epochs: list[float | None]  # of each corpus
    predictions: list[Prediction]
    optimum: tuple[float, float]  # parameters and tokens that Chinchilla's law gives the same operations
    upcycling: tuple[float, float]  # `scaling.upcycling_bounds`
    warnings: list[str]


def make_plan(
    recipe: Recipe,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    available: int,
    device: str = "cpu",
    corpora: Sequence[Corpus] = (),
    valid_tokens: int = 0,
    samples: Sequence[Sequence[Sample]] = (),
) -> Plan:
    """`samples` has, for each phase of the recipe, one measurement at full depth or two at different depths."""
    phases = _phases(recipe, config, samples)
    tokens = sum(p.steps for p in phases) * recipe.train.batch * phases[0].sequence
    memory = _highest(recipe, config, dtype, device, available, phases, samples)
    drawn = [tokens * share for share in shares(corpora, recipe.data.weights)]
    epochs = [n / c.tokens if c.tokens else None for n, c in zip(drawn, corpora, strict=True)]
    known = bool(corpora) and all(c.tokens for c in corpora)
    worth = sum(effective_tokens(n, c.tokens) for n, c in zip(drawn, corpora, strict=True)) if known else float(tokens)
    operations = sum(p.steps * p.operations for p in phases)
    return Plan(
        parameters=memory.parts.static.parameters,
        active=active_parameters(config).total,
        tokens=tokens,
        phases=phases,
        operations=operations,
        memory=memory,
        timing=_timing(recipe, phases, tokens, valid_tokens),
        corpora=list(corpora),
        epochs=epochs,
        predictions=predict_losses(config, tokens, worth),
        optimum=chinchilla_optimum(operations),
        upcycling=upcycling_bounds(tokens),
        warnings=[
            *_memory_warnings(recipe, config, dtype, device, memory, phases, samples),
            *text_warnings(corpora, epochs),
        ],
    )


def _phases(recipe: Recipe, config: ModelConfig, samples: Sequence[Sequence[Sample]]) -> list[Phase]:
    t, plan = recipe.train, recipe.sequence_plan()
    tokens, ends = t.batch * plan[0][1], [start for start, _ in plan[1:]] + [t.steps]
    found = []
    for i, ((start, sequence), end, rows) in enumerate(zip(plan, ends, recipe.rows_of_micro_batches(), strict=True)):
        seconds = planned_seconds(samples[i], config.num_hidden_layers, rows, t.accumulate) if samples else None
        operations = tokens * training_operations(config, sequence)
        found.append(Phase(sequence=sequence, steps=end - start, rows=rows, operations=operations, seconds=seconds))
    return found


def planned_seconds(samples: Sequence[Sample], layers: int, rows: int, accumulate: int) -> float:
    """Of a step: `accumulate` micro-batches and an update, each linear in the layers, the first in the rows too.

    Example: 1 layer takes 2 s and 3 layers 4 s, so 6 layers take 2 + 5 · (4 - 2) / 2 = 7 s.
    """
    micro = _at(layers, [(s.layers, s.micro_seconds * rows / s.rows) for s in samples])
    update = _at(layers, [(s.layers, s.optimizer_seconds) for s in samples])
    return accumulate * micro + update


def _at(layers: int, points: list[tuple[int, float]]) -> float:
    """The last point where it is at `layers`; else the line through the first and the last, never below the last."""
    (near, low), (far, high) = points[0], points[-1]
    if far in (layers, near):
        return high * (1 if far == layers else layers / far)
    return max(high, low + (layers - near) * (high - low) / (far - near))


def planned_memory(
    recipe: Recipe, config: ModelConfig, dtype: torch.dtype, rows: int, sequence: int, available: int,
    samples: Sequence[Sample] = (), device: str = "cpu",
) -> Memory:  # fmt: skip
    """Of a step of one phase: the formula, and what measurements have beyond it, linear in the layers."""
    parts = footprint(config, recipe.train, dtype, rows, sequence, device)
    if not samples:
        return Memory(parts=parts, framework=0, rest=0, peak=parts.peak, is_measured=False, available=available)
    deep, layers = samples[-1], config.num_hidden_layers
    parts = replace(parts, activations=_counted(parts.activations, recipe, samples, layers, rows))
    beyond = []
    for s in samples:
        shape = replace(config, num_hidden_layers=s.layers)
        there = footprint(shape, recipe.train, dtype, s.rows, sequence, device)
        there = replace(there, activations=_counted(there.activations, recipe, [s], s.layers, s.rows))
        beyond.append((s.layers, float(max(0, s.peak - s.framework - there.peak)) * rows / s.rows))
    rest = round(_at(layers, beyond))
    return Memory(
        parts=parts, framework=deep.framework, rest=rest, peak=deep.framework + parts.peak + rest, is_measured=True,
        available=available,
    )  # fmt: skip


def _counted(formula: Activations, recipe: Recipe, samples: Sequence[Sample], layers: int, rows: int) -> Activations:
    """The activations that the measured passes kept; with recompute the formula, which knows what is dropped."""
    if recipe.train.recompute:
        return formula
    return Activations(**{
        part: round(_at(layers, [(s.layers, s.kept[part] * rows / s.rows) for s in samples]))
        for part in ("attention", "experts", "norms", "loss")
    })  # fmt: skip


def _highest(
    recipe: Recipe, config: ModelConfig, dtype: torch.dtype, device: str, available: int, phases: Sequence[Phase],
    samples: Sequence[Sequence[Sample]],
) -> Memory:  # fmt: skip
    each = [
        planned_memory(recipe, config, dtype, p.rows, p.sequence, available, samples[i] if samples else (), device)
        for i, p in enumerate(phases)
    ]
    return max(each, key=lambda memory: memory.peak)


def _timing(recipe: Recipe, phases: Sequence[Phase], tokens: int, valid_tokens: int) -> Timing | None:
    steps = [p.steps * p.seconds for p in phases if p.seconds is not None]
    if len(steps) < len(phases):
        return None
    window, n_files = max(p.sequence for p in phases), len(recipe.data.valid)
    during = recipe.train.steps // recipe.run.eval_every * n_files * 8 * window
    per_token = sum(steps) / tokens / 3
    return Timing(steps=sum(steps), scoring=(during + valid_tokens) * per_token)


def _memory_warnings(
    recipe: Recipe, config: ModelConfig, dtype: torch.dtype, device: str, memory: Memory, phases: Sequence[Phase],
    samples: Sequence[Sequence[Sample]],
) -> list[str]:  # fmt: skip
    found = []
    if not memory.fits:
        rows = [(p.rows, p.sequence) for p in phases]
        found.append(
            advice(recipe, config, dtype, needed=memory.peak, available=memory.available, rows=rows, device=device)
        )
    for phase, measured in zip(phases, samples, strict=bool(samples)):
        if measured[-1].rows < phase.rows:
            found.append(
                f"only {measured[-1].rows} of {phase.rows} rows of {phase.sequence} were measured, since all would "
                "have taken too long: memory and time are rough"
            )
    if any(not s.is_settled for measured in samples for s in measured):
        found.append("memory was still rising when the measurement ended: the run will take more than this")
    return found
