"""What goes wrong while a model trains, noticed as it happens and said once, with the key of the recipe that helps.

Three things are watched: experts that get (almost) nothing, losses and gradient norms far above the last ones. An alarm
is given again only after what it was about had gone back to normal. Shapes: L sparse layers, E experts.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np

from coterie.train.recipe import Balance, Train

__all__ = ["Alarms", "Spike", "Starvation"]

_NORMAL = 1.4826  # the standard deviation of a normal distribution in units of its median absolute deviation


class Spike:
    """Whether a value stands out from those before it: above median + `width` deviations, and above `factor` x median.

    The deviation is the median absolute one, which the outliers themselves do not move. After `True` it stays silent
    until a value is back under half of that distance.
    """

    def __init__(self, *, width: float, factor: float, window: int = 64, needs: int = 16):
        self._width, self._factor, self._needs = width, factor, needs
        self._values: deque[float] = deque(maxlen=window)
        self._is_high = False
        self.median = math.nan

    def add(self, value: float) -> bool:
        """Take the next value, which must be finite; True where it is the first of a spike."""
        is_new = False
        if len(self._values) >= self._needs:
            self.median = statistics.median(self._values)
            deviation = _NORMAL * statistics.median(abs(v - self.median) for v in self._values)
            distance = max(self._width * deviation, (self._factor - 1) * abs(self.median))
            is_new = value > self.median + distance and not self._is_high
            self._is_high = value > self.median + (distance if not self._is_high else distance / 2)
        self._values.append(value)
        return is_new


class Starvation:
    """Experts whose part over the last `window` steps is below `low` of the fair one: (layer, expert) once each.

    One is forgotten when it is back above twice that. The sums of the window are kept, so a step costs two additions.
    """

    def __init__(self, *, low: float = 0.1, window: int = 50):
        self._low, self._window = low, window
        self._steps: deque[np.ndarray] = deque()
        self._sum_LE: np.ndarray | None = None
        self._known_LE: np.ndarray | None = None

    def add(self, shares_LE: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Take a step's shares (1: fair); the experts that are new among those with nothing at all, and with little."""
        if self._sum_LE is None or self._known_LE is None:
            self._sum_LE, self._known_LE = np.zeros_like(shares_LE), np.zeros(shares_LE.shape, dtype=bool)
        self._steps.append(shares_LE)
        self._sum_LE += shares_LE
        if len(self._steps) < self._window:
            return [], []
        if len(self._steps) > self._window:
            self._sum_LE -= self._steps.popleft()
        mean_LE = self._sum_LE / self._window
        new_LE = (mean_LE < self._low) & ~self._known_LE
        self._known_LE = (self._known_LE | new_LE) & (mean_LE < 2 * self._low)
        if not new_LE.any():
            return [], []
        is_dead_LE = mean_LE < 1e-9  # of a sum that was added to and subtracted from
        return _places(new_LE & is_dead_LE), _places(new_LE & ~is_dead_LE)


class Alarms:
    """All of them for one run; `check` gives the sentences of a step."""

    def __init__(self, train: Train, balance: Balance, *, window: int = 50):
        self._train, self._balance, self._window = train, balance, window
        self._starvation = Starvation(window=window)
        self._loss = Spike(width=8, factor=1.1)
        self._norm = Spike(width=12, factor=4)

    def check(self, step: int, loss: float, grad_norm: float, shares_LE: np.ndarray) -> list[str]:
        """Sentences to show, most often none. `shares_LE` has no rows where the model is dense."""
        found = []
        if shares_LE.size:
            dead, starving = self._starvation.add(shares_LE)
            found += [self._starved(dead, "got no token")] if dead else []
            found += [self._starved(starving, "got less than a tenth of a fair share")] if starving else []
        if math.isfinite(loss) and self._loss.add(loss):
            found.append(
                f"step {step}: the loss is {loss:.3f} and was {self._loss.median:.3f}; if it does not come back, go on "
                f"from an earlier state with a smaller [train] lr (now {self._train.lr:g}) or a longer warmup "
                f"(now {self._train.warmup})"
            )
        if math.isfinite(grad_norm) and self._norm.add(grad_norm):
            found.append(
                f"step {step}: the gradient's norm is {grad_norm:.3g} and was {self._norm.median:.3g}, clipped to "
                f"{self._train.clip:g}; if it happens again, a smaller [train] lr or clip keeps such batches harmless"
            )
        return found

    def _starved(self, places: Sequence[tuple[int, int]], what: str) -> str:
        shown = ", ".join(f"{expert} of layer {layer}" for layer, expert in places[:4])
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        word = "expert" if len(places) == 1 else "experts"
        return f"{word} {shown}{more} {what} in the last {self._window} steps; {self._remedy()}"

    def _remedy(self) -> str:
        b = self._balance
        if b.load < 0.01:
            return f"raise [balance] load (now {b.load:g}; 0.01 is usual)"
        if not b.bias:
            return f'raise [balance] load (now {b.load:g}), or choose [router] kind = "sigmoid_bias" and [balance] bias'
        return f"raise [balance] bias (now {b.bias:g}) or load (now {b.load:g}), or lower [train] lr"


def _places(mask_LE: np.ndarray) -> list[tuple[int, int]]:
    return [(int(layer), int(expert)) for layer, expert in np.argwhere(mask_LE)]
