"""What a person sees of a training run: one line that is redrawn on a terminal, plain lines now and then elsewhere.

Loss, bits per byte of the training text, tokens and operations per second, balance, time left. What has to stay (scores
of the valid files, alarms) is printed above that line.
"""

import math
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

from coterie.cli.output import human_operations, is_terminal

__all__ = ["TrainView", "human_time", "status"]

_RECENT = 20  # steps whose mean is shown
_SECONDS_BETWEEN = {True: 0.1, False: 10.0}  # redraws on a terminal, lines elsewhere


class TrainView:
    """`view.show(record)` after each step; at the end of `with` the line stays, or goes where there was an error."""

    def __init__(self, steps: int, stream: Any = None):
        from rich.console import Console

        self._steps = steps
        self._stream = sys.stderr if stream is None else stream
        self._is_live = is_terminal(self._stream)
        self._console = Console(file=self._stream, soft_wrap=not self._is_live, highlight=False)
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._first: dict[str, Any] | None = None
        self._shown = -math.inf

    def show(self, record: dict[str, Any]) -> None:
        """A step's record, as log.jsonl has it."""
        self._recent.append(record)
        self._first = self._first or record
        self._keep(record)
        is_last = record["step"] + 1 >= self._steps
        if time.monotonic() - self._shown >= _SECONDS_BETWEEN[self._is_live] or is_last:
            self._draw()
            self._shown = time.monotonic()

    def clear(self) -> None:
        """Take the line away, for something else to be drawn there."""
        if self._is_live:
            from rich.control import Control
            from rich.segment import ControlType

            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))

    def _keep(self, record: dict[str, Any]) -> None:
        """Lines that stay."""
        lines = [f"alarm: {sentence}" for sentence in record.get("alarms", [])]
        if record.get("valid"):
            scores = "  ".join(f"{name} {value:.3f}" for name, value in record["valid"].items())
            lines.append(f"step {record['step'] + 1}, bits per byte: {scores}")
        if lines:
            self.clear()
        for line in lines:
            self._console.print(line, style="yellow" if line.startswith("alarm") else None, markup=False)

    def _draw(self) -> None:
        assert self._first is not None
        parts = status(list(self._recent), self._first, self._steps)
        if not self._is_live:
            self._console.print("  ".join(text for _, text in parts), markup=False)
            return
        while len(parts) > 1 and len("  ".join(text for _, text in parts)) >= self._console.width:
            parts.remove(max(parts))  # the least important
        self.clear()
        line = "  ".join(text for _, text in parts)
        self._console.print(line, end="\r", markup=False, no_wrap=True, overflow="crop", crop=True)

    def __enter__(self) -> "TrainView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()
        if self._is_live and self._first is not None and error is None:
            self._draw()  # the last one stays
            self._console.print()


def status(recent: list[dict[str, Any]], first: dict[str, Any], steps: int) -> list[tuple[int, str]]:
    """The parts of the line, each with its rank: the higher, the earlier it is left out where there is no room.

    Figures are means over the `recent` records; the time left is reckoned from the steps since `first`, evaluation and
    saving included.
    """
    last = recent[-1]
    n_done = last["step"] + 1
    parts = [
        (0, f"step {n_done}/{steps}"),
        (1, f"loss {_mean(recent, 'loss'):.3f}"),
        (3, f"{_mean(recent, 'bits_per_byte'):.3f} bits/byte"),
        (4, f"{_harmonic_mean(recent, 'tokens_per_s'):,.0f} tok/s"),
        (6, f"{human_operations(_harmonic_mean(recent, 'operations_per_s'))}/s"),
        (7, f"{_harmonic_mean(recent, 'peak_share'):.0%} of peak"),
    ]
    if "balance" in last:  # the model is sparse
        parts += [
            (5, f"MaxVio {_mean(recent, 'max_vio'):.2f}"),
            (9, f"entropy {_mean(recent, 'entropy'):.3f}"),
            (8, f"{last['idle']} idle"),
        ]
    n_timed = last["step"] - first["step"]
    if n_timed and n_done < steps:
        left = (last["seconds"] - first["seconds"]) / n_timed * (steps - n_done)
        parts.append((2, f"{human_time(left)} left"))
    return parts


def human_time(seconds: float) -> str:
    """`5025` as `1 h 24 min`, `300` as `5 min`, `42` as `42 s`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return sum(float(r[key]) for r in records) / len(records)


def _harmonic_mean(records: list[dict[str, Any]], key: str) -> float:
    """Of rates over steps of the same size: what all of them together reached."""
    return len(records) / sum(1 / max(float(r[key]), 1e-12) for r in records)
