"""Stop strings in streamed text: never shown, not even in part, wherever the text was cut into pieces.

Generation ends with the first character that completes a stop string; where several end there, the longest is cut off.
With `keep` the stop string stays in the text, which still ends with it.
The result is the same however the text is cut. Only what may still become a stop string is held back.
Example, stop "END": push("the E") -> "the "; push("X") -> "EX"; push(" END!") -> " " and `is_stopped`.
"""

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Feed it text as it comes; it returns what may be shown."""

    def __init__(self, stops: Sequence[str], keep: bool = False):
        self._stops, self._keep = tuple(stops), keep
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The newly releasable text; once `is_stopped`, always the empty string."""
        if self.is_stopped or not self._stops:
            return "" if self.is_stopped else text
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self.is_stopped, self._held = True, ""
            return text[:cut]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        return min(found)[not self._keep] if found else None

    def _held_length(self, text: str) -> int:
        longest = 0
        for s in self._stops:
            for n in range(min(len(s) - 1, len(text)), longest, -1):
                if text.endswith(s[:n]):
                    longest = n
                    break
        return longest
