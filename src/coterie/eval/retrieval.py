"""The task `retrieval`: a JSON object of random keys and values, and the value of one key asked for at its end.

After Liu et al. (arXiv 2307.03172), who found what is in the middle harder to get than what is at the ends. All prompts
of a trial hold the same object and differ in the key that is asked for, so models read the object once.
"""

import random
import uuid
from collections.abc import Callable

from coterie.eval.needle import Hidden, Needle, longest_that_fits
from coterie.eval.settings import one_of
from coterie.eval.task import Context

__all__ = ["Retrieval"]

_TASK = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
_FORMS = ("short", "uuid")
_MOST_OTHERS = 9


class Retrieval(Needle):
    """`--set form=uuid` takes whole UUIDs, as the paper does; `short` eight hexadecimal digits, so that more fit."""

    name = "retrieval"
    protocol = (
        "the value of a key in a JSON object of random pairs; exact: the greedy answer is the value (chance: any value "
        "that is there); ranked: it is the likeliest of up to ten that are there"
    )
    settings = (*Needle.settings, "form")

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        self._form = one_of({} if context is None else context.settings, "form", _FORMS)

    def hide(self, draw: random.Random, depth: float, excess: Callable[[str], int]) -> Hidden | None:
        pairs: dict[str, str] = {}

        def prompt(n: int, place: int = 0) -> str:
            while len(pairs) < n:
                pairs.setdefault(self._random(draw), self._random(draw))
            some = list(pairs.items())[:n]
            lines = ",\n ".join(f'"{key}": "{value}"' for key, value in some)
            return f'{_TASK}{{{lines}}}\n\nKey: "{some[place][0]}"\nCorresponding value:'

        n = longest_that_fits(prompt, excess, 2)
        while n is not None and excess(prompt(n, round(depth * (n - 1)))) > 0:  # a key of more tokens than the first
            n = n - 1 if n > 2 else None
        if n is None:
            return None
        place = round(depth * (n - 1))
        values = list(pairs.values())[:n]
        others = values[:place] + values[place + 1 :]
        chosen = draw.sample(others, min(_MOST_OTHERS, len(others)))
        return Hidden(prompt(n, place), values[place], tuple(chosen), 1 / n)

    def spell(self, value: str) -> str:
        return f' "{value}"'

    def read(self, written: str) -> str | None:
        return written.strip().removeprefix('"').split('"')[0] or None

    @property
    def longest_value(self) -> str:
        digits = "4a8f0b1c9d2e7f3a5b6c8d9e0f1a2b3c"
        return digits[:8] if self._form == "short" else str(uuid.UUID(digits))

    def _random(self, draw: random.Random) -> str:
        digits = f"{draw.getrandbits(128):032x}"
        return digits[:8] if self._form == "short" else str(uuid.UUID(digits))
