"""What the engine needs of a form that text must have; `engine/grammar.py` has the ones that people write."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Constraint", "Matcher"]


class Matcher(Protocol):
    """Where one sample is. Any method may raise `CoterieError`, which ends that sample and no other."""

    @property
    def is_done(self) -> bool:
        """Nothing may follow but the end."""

    def mask_(self, logits_V: Tensor) -> None:
        """Make the logits of what does not fit minus infinity, in place; an end id fits where the text may end."""

    def accept(self, token_id: int) -> None:
        """Go on past this token."""


class Constraint(Protocol):
    """A form, shared by requests."""

    def matcher(self, context_ids: Sequence[int] = (), end_ids: Iterable[int] = ()) -> Matcher:
        """One for each sample. `context_ids`: what the reader has just seen; `end_ids`: what ends the text."""
