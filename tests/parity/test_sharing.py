"""Texts that share pages are read as if alone: fed, copied, cut, adopted, remembered, moved and cleared at random, in a
cache that grows or is small enough to evict, every row has the bits of its text read by itself.
"""

from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.engine.runner import Runner
from coterie.kernels import cpu
from coterie.model import Transformer

pytestmark = pytest.mark.skipif(cpu.used() == "reference", reason="the native kernels are not built")

N_SLOTS, N_STEPS, N_TOKENS = 4, 60, 260
COMMON = {(0, 1): 130, (0, 2): 70, (1, 2): 70}  # tokens that two texts begin with alike


def texts() -> list[list[int]]:
    found = torch.randint(3, 9, (3, N_TOKENS), generator=torch.Generator().manual_seed(1)).tolist()
    found[1][:130], found[2][:70] = found[0][:130], found[0][:70]
    for text, first in ((0, 130), (1, 130), (2, 70)):
        found[text][first] = 10 + text  # here they part
    return found


class Reader:
    """Takes random steps with one runner; `alone` [3] are the hidden rows of each text read by itself."""

    def __init__(self, runner: Runner, alone: list[Tensor], random: Random):
        self.runner, self.cache, self.alone, self.random = runner, runner.cache, alone, random
        self.texts, self.of_slot = texts(), [0] * N_SLOTS
        self.cache.reserve(N_SLOTS)

    def step(self) -> None:
        names = ["feed"] * 5 + ["wrong"] * 3 + ["copy"] * 2 + ["turn", "cut", "adopt", "adopt", "remember", "remember"]
        getattr(self, self.random.choice([*names, "move", "clear"]))(self.random.randrange(N_SLOTS))

    def feed(self, slot: int, *, is_wrong: bool = False) -> None:
        """The next tokens of one or several texts; wrong ones are forgotten again."""
        slots = dict.fromkeys([slot, *(self.random.randrange(N_SLOTS) for _ in range(self.random.choice((0, 0, 2))))])
        work = []
        for one in slots:
            first, n = self.cache.lengths[one], self.random.choice((1, 1, 3, 9, 30, 64, 80))
            if ids := self.texts[self.of_slot[one]][first : first + n]:
                work.append((one, [3] * len(ids) if is_wrong else ids))
        if not work:
            return
        first = {one: self.cache.lengths[one] for one, _ in work}
        hidden_TD = self.runner.feed(work).hidden_TD
        if is_wrong:
            for one, n in first.items():
                self.cache.truncate(one, n)
            return
        rows = [self.alone[self.of_slot[one]][first[one] : first[one] + len(ids)] for one, ids in work]
        assert torch.equal(hidden_TD, torch.cat(rows))

    def wrong(self, slot: int) -> None:
        self.feed(slot, is_wrong=True)

    def copy(self, slot: int) -> None:
        target = self.random.randrange(N_SLOTS)
        self.cache.copy(slot, target)
        self.of_slot[target] = self.of_slot[slot]

    def move(self, slot: int) -> None:
        target = self.random.randrange(N_SLOTS)
        self.cache.move(slot, target)
        self.of_slot[target] = self.of_slot[slot]

    def turn(self, slot: int) -> None:
        """Go on with another text that begins alike."""
        other = self.random.randrange(3)
        pair = min(other, self.of_slot[slot]), max(other, self.of_slot[slot])
        if self.cache.lengths[slot] <= COMMON.get(pair, N_TOKENS):
            self.of_slot[slot] = other

    def cut(self, slot: int) -> None:
        length, window = self.cache.lengths[slot], self.cache.window
        n = max(0, length - self.random.choice((1, 5, 64, 120)))
        if window is None or n == 0 or self.cache._held[slot][max(0, n - window) // 64] >= 0:
            self.cache.truncate(slot, n)

    def adopt(self, slot: int) -> None:
        text = self.random.randrange(3)
        n = self.cache.match(self.texts[text])
        assert self.cache.adopt(slot, self.texts[text]) == n == self.cache.lengths[slot]
        self.of_slot[slot] = text

    def remember(self, slot: int) -> None:
        self.cache.remember(slot, self.texts[self.of_slot[slot]])

    def clear(self, slot: int) -> None:
        self.cache.clear(slot)

    def end(self) -> None:
        """Nothing is held any more."""
        for slot in range(N_SLOTS):
            self.cache.clear(slot)
        assert self.cache.n_free == self.cache.n_pages and not any(self.cache._pool._holders)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("window", [None, 20, 64, 100])
def test_sharing_changes_no_bit(window: int | None, dtype: torch.dtype, make_model: Callable[..., Transformer]) -> None:
    model = make_model(hidden_size=32, intermediate_size=32, num_hidden_layers=2, sliding_window=window)
    with torch.inference_mode():
        alone = [Runner(model, cache_dtype=dtype).feed([(0, text)]).hidden_TD for text in texts()]

    @settings(deadline=None, max_examples=25 if settings.default and settings.default.max_examples < 1000 else 500)
    @given(st.integers(0, 1 << 30), st.booleans())
    def check(seed: int, is_small: bool) -> None:
        reader = Reader(Runner(model, 4 * 5 if is_small else None, dtype), alone, Random(seed))
        for _ in range(N_STEPS):
            reader.step()
        reader.end()

    with torch.inference_mode():
        check()
