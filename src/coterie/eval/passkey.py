"""The task `passkey`: five digits somewhere in a long text about nothing, asked for at its end.

The prompt is that of Mohtashami and Jaggi (arXiv 2305.16300), which the Mixtral paper's figure uses: the same four
sentences over and over. As every depth has the same number of them, what lies before two keys is the same text.
"""

import random
import re
from collections.abc import Callable

from coterie.eval.needle import Hidden, Needle, longest_that_fits

__all__ = ["Passkey"]

_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_KEY = "The pass key is {}. Remember it. {} is the pass key."
_QUESTION = "What is the pass key? The pass key is"
_N_OTHERS = 9


class Passkey(Needle):
    """Nine other keys stand beside the right one: ranking guesses right one time in ten."""

    name = "passkey"
    protocol = (
        "five digits hidden in repeated text; exact: the greedy answer is the key; ranked: the key is the likeliest of "
        "ten; lengths count everything, the answer too"
    )
    longest_value = "99999"

    def hide(self, draw: random.Random, depth: float, excess: Callable[[str], int]) -> Hidden | None:
        value, *others = (str(n) for n in draw.sample(range(10_000, 100_000), 1 + _N_OTHERS))

        def prompt(n: int) -> str:
            before = round(depth * n)
            parts = [_TASK, *[_FILLER] * before, _KEY.format(value, value), *[_FILLER] * (n - before), _QUESTION]
            return "\n".join(parts)

        n = longest_that_fits(prompt, excess, 0)
        return None if n is None else Hidden(prompt(n), value, tuple(others), 1 / 90_000)

    def spell(self, value: str) -> str:
        return f" {value}"

    def read(self, written: str) -> str | None:
        match = re.match(r"\s*(\d+)", written)
        return None if match is None else match[1]
