"""Learning rate by step: warm-up from 0, then down to 0: linear (favoured by arXiv 2502.15938), half a cosine, or late.

"wsd" is warm-up, stable, decay (arXiv 2404.06395): the peak until the last part of the run, then linear to 0, so that a
run may be prolonged from any checkpoint of its stable part.
"""

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, schedule: str, decay: float = 0.2) -> float:
    """The rate of update number `step` (0-based) of `steps`; `decay` is the share of them in which "wsd" falls."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    start = max(warmup, steps - round(decay * steps)) if schedule == "wsd" else warmup
    done = max(0, step - start) / max(1, steps - start)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done)
