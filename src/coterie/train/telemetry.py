"""What a run of training says of itself: the load of the experts, its speed, its share of what the machine can do.

All of it is arithmetic on numbers that the step has anyway: the tokens each expert got, and the clock. The counts of
all layers cross from the device to Python once per step. Shapes: L sparse layers, E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.routing.measures import idle_experts, load_entropy, max_violation
from coterie.sizes import active_parameters, operations_per_token
from coterie.train.alarms import Alarms
from coterie.train.recipe import Recipe

__all__ = ["Load", "Telemetry", "mean_bytes_per_token", "measure_load", "training_operations"]


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a step; `shares_LE` is each expert's part as a multiple of the fair one (1: perfectly balanced)."""

    shares_LE: np.ndarray
    max_vio: float  # the busiest expert of all layers above its fair share: 0 is ideal, E - 1 the worst
    entropy: float  # of the shares, mean over layers, 1 where all are equal and 0 where one expert gets everything
    idle: int  # experts of all layers that got nothing
    dropped: float  # share of the (token, slot) pairs that no expert took: no room, or left out by GShard

    def record(self) -> dict[str, float]:
        """What of it goes into the log of a step."""
        return {"max_vio": self.max_vio, "entropy": self.entropy, "idle": self.idle, "dropped": self.dropped}


def measure_load(counts: Sequence[Tensor], pairs: float | None = None) -> Load:
    """From the pairs that each expert of each sparse layer got in a step: a tensor [E] for every layer, none if dense.

    `pairs` is how many (token, slot) pairs a layer had to place; without it nothing counts as dropped.
    Example: counts 6, 2, 0, 0 are shares 3, 1, 0, 0: MaxVio 2, entropy 0.41, two idle.
    """
    if not counts:
        return Load(np.zeros((0, 1)), 0.0, 1.0, 0, 0.0)
    counts_LE = torch.stack([c.detach().float() for c in counts]).cpu()
    shares_LE = counts_LE / counts_LE.mean(1, keepdim=True).clamp(min=1e-9)
    dropped = max(0.0, 1 - float(counts_LE.sum(1).mean()) / pairs) if pairs else 0.0
    return Load(
        shares_LE.double().numpy(),
        max_vio=max(max_violation(counts_E) for counts_E in counts_LE),
        entropy=sum(load_entropy(counts_E) for counts_E in counts_LE) / len(counts_LE),
        idle=idle_experts(counts_LE),
        dropped=dropped,
    )


def training_operations(config: ModelConfig, sequence: int) -> float:
    """Floating-point operations that training does per token of a row of `sequence`: three times those of a forward
    pass, since the backward pass multiplies by every weight twice.

    6 per active weight in a product plus 12 · layers · heads · head width for each key that a query sees; a causal row
    of S sees (S + 1) / 2 on average, fewer with a window. What recompute adds is not counted, nor are experts that a
    token did not use: the share of the peak is of useful work.
    """
    keys = _per_key(config) * _mean_keys(sequence, config.sliding_window)
    return 3 * (operations_per_token(config) + keys - _not_done_by_soft(config, sequence))


def _not_done_by_soft(config: ModelConfig, sequence: int) -> float:
    """Soft routing has experts read `slots` mixtures of a sequence, not its tokens: per token so much less, and the
    mixing more: each token goes into every mixture, and takes from every answer."""
    if config.router.kind != "soft" or config.num_local_experts is None:
        return 0.0
    experts = 2 * active_parameters(config).feedforward
    n_slots = config.router.slots * config.num_local_experts
    mixing = 2 * 2 * config.num_hidden_layers * n_slots * config.hidden_size
    return experts * (1 - config.router.slots / sequence) - mixing


def _per_key(config: ModelConfig) -> int:
    return operations_per_token(config, 1) - operations_per_token(config, 0)


def _mean_keys(sequence: int, window: int | None) -> float:
    """Keys that a query of a causal row sees, mean over the row. Example: a row of 4 with a window of 2 is 7 / 4."""
    seen = min(sequence, window or sequence)
    return (seen * (seen + 1) / 2 + (sequence - seen) * seen) / sequence


def mean_bytes_per_token(files: Sequence[tuple[int, int]], weights: Sequence[float]) -> float:
    """Of a mixture, from (tokens, bytes) of each file: weights are shares of the tokens, none means as they come.

    Example: 100 tokens of 4 bytes and 300 of 2 are 2.5 bytes per token; drawn with weights 1 and 1 it is 3.
    """
    shares = weights or [n for n, _ in files]
    return sum(w * n_bytes / max(1, n) for w, (n, n_bytes) in zip(shares, files, strict=True)) / sum(shares)


class Telemetry:
    """What the record of each step gets beside its losses: load, speed, the share of the peak, alarms.

    `peak` is the operations per second of all that the run computes on together (`train/peak.py`), `bytes_per_token`
    that of the text as it is drawn: it makes bits per byte of a loss.
    """

    def __init__(self, recipe: Recipe, config: ModelConfig, *, peak: float, bytes_per_token: float):
        self._config, self._peak, self._bits = config, peak, 1 / (math.log(2) * bytes_per_token)
        self._alarms = Alarms(recipe.train, recipe.balance)
        self._operations: dict[int, float] = {}  # per token, by the length of a row

    def add(
        self, record: dict[str, Any], counts: Sequence[Tensor], tokens: int, seconds: float, n_counted: int
    ) -> None:
        """Complete the record of a step of `tokens` tokens that took `seconds`; it has `loss` and `grad_norm`.

        `counts`: the pairs that each expert got of the `n_counted` tokens with a target, a tensor [E] for every sparse
        layer.
        """
        load = measure_load(counts, n_counted * self._config.num_experts_per_tok)
        sequence = record["sequence"]
        if sequence not in self._operations:
            self._operations[sequence] = training_operations(self._config, sequence)
        record["bits_per_byte"] = record["loss"] * self._bits
        record |= load.record()
        record["tokens_per_s"] = tokens / seconds
        record["operations_per_s"] = record["tokens_per_s"] * self._operations[sequence]
        record["peak_share"] = record["operations_per_s"] / self._peak
        alarms = self._alarms.check(record["step"], record["loss"], record["grad_norm"], load.shares_LE)
        if alarms:
            record["alarms"] = alarms
