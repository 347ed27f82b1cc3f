"""Learning rate by step: warm-up from 0, then linear or half-cosine decay to 0 (arXiv 2502.15938 favours linear)."""

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, schedule: str) -> float:
    """The rate of update number `step` (0-based) of `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]
