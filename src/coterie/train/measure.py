"""Measurements of a recipe's steps, each in a process of its own; of a model that is slow, at two smaller depths.

A process that the system kills for its memory takes nobody along, and its peak is nobody else's.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from coterie.config import ModelConfig
from coterie.errors import ResourceError
from coterie.train.footprint import footprint
from coterie.train.peak import matrix_peak
from coterie.train.recipe import Recipe
from coterie.train.sample import Sample
from coterie.train.telemetry import training_operations

__all__ = ["measure", "measure_phases"]

_SHARE_OF_PEAK = 0.25  # of the machine's matrix peak that a step is guessed to reach, before it is measured
_OVERHEAD, _FRAMEWORK = 1.5, 400_000_000  # bytes a process takes beyond the formula: a factor, and what torch needs


def measure_phases(
    path: Path, recipe: Recipe, config: ModelConfig, dtype: torch.dtype, device: torch.device, *,
    available: int, seconds: float = 5.0, report: Callable[[str], None] = lambda text: None,
) -> list[list[Sample]]:  # fmt: skip
    """For each phase of the recipe one sample at full depth, or one of 1 layer and a deeper one; `seconds` in all.

    Raises `ResourceError` where not even one layer fits, or a process did not end.
    """
    phases, train = recipe.sequence_plan(), recipe.train
    each, found = seconds / len(phases), []
    for (_, sequence), rows in zip(phases, recipe.rows_of_micro_batches(), strict=True):

        def at(layers: int, rows: int = rows, sequence: int = sequence) -> Sample:
            report(f"measuring steps of {layers} of {config.num_hidden_layers} layers, rows of {sequence}")
            shape = replace(config, num_hidden_layers=layers)
            return measure(path, shape, dtype, device, rows=rows, sequence=sequence, seconds=each)

        def fits(layers: int, rows: int = rows, sequence: int = sequence) -> bool:
            shape = replace(config, num_hidden_layers=layers)
            return (
                footprint(shape, train, dtype, rows, sequence, device.type).peak * _OVERHEAD + _FRAMEWORK <= available
            )

        guess = rows * sequence * training_operations(config, sequence) / matrix_peak(dtype, device) / _SHARE_OF_PEAK
        found.append(_samples(config.num_hidden_layers, guess <= 2 * seconds, each, at, fits))
    return found


def _samples(
    layers: int, is_quick: bool, seconds: float, at: Callable[[int], Sample], fits: Callable[[int], bool]
) -> list[Sample]:
    if not fits(1):
        raise ResourceError("not even one layer of the model fits the memory that is free, so no step was measured")
    if is_quick and fits(layers):
        return [at(layers)]
    shallow = at(1)
    step = shallow.micro_seconds + shallow.optimizer_seconds
    depth = min(layers, max(2, int(seconds / step)))
    while depth > 1 and not fits(depth):
        depth -= 1
    return [shallow] if depth == 1 else [shallow, at(depth)]


def measure(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, *,
    rows: int, sequence: int, seconds: float,
) -> Sample:  # fmt: skip
    """`train.sample.sample` of the recipe at `path` in another process; `ResourceError` where it did not end."""
    request = {
        "recipe": str(path), "config": config.to_fields(), "dtype": str(dtype).removeprefix("torch."),
        "device": str(device), "rows": rows, "sequence": sequence, "seconds": seconds,
    }  # fmt: skip
    limit = 120 + 60 * seconds
    command = [sys.executable, "-m", "coterie.train.sample"]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"the measured steps took longer than {limit:.0f} seconds; use --no-measure") from None
    if done.returncode:
        said = next(reversed(done.stderr.strip().splitlines()), "it said nothing")
        reason = f"signal {-done.returncode}, for want of memory perhaps" if done.returncode < 0 else said
        raise ResourceError(f"the process of the measured steps ended early: {reason}; use --no-measure")
    return Sample(**json.loads(done.stdout))
