"""What a router says, and what it may know about the rows it routes.

Shapes: T tokens, E experts, K experts per token, M slots of a sequence (several an expert), B sequences.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from coterie.routing.edits import RowEdits

__all__ = ["Assignment", "Mixture", "Routing", "Rows"]


class Assignment(NamedTuple):
    """Which experts each token goes to; slot 0 is the best. An unused slot has id -1 and weight 0."""

    ids_TK: Tensor  # int32
    weights_TK: Tensor  # float32
    logits_TE: Tensor  # float32, raw: before softmax and any bias
    losses: dict[str, Tensor]  # auxiliary losses the router itself defines


class Mixture(NamedTuple):
    """Soft routing: experts read mixtures of the tokens of a sequence, tokens read mixtures of what experts say.

    Slots m·E/M .. are expert by expert: with E=2 and M=4, slots 0 and 1 are expert 0's. To whoever counts, every token
    goes to every expert.
    """

    dispatch_TM: Tensor  # float32; a slot's column sums to 1 over the tokens of each sequence
    combine_TM: Tensor  # float32; a token's row sums to 1
    lengths_B: list[int]  # tokens of each sequence, which follow each other
    logits_TE: Tensor  # float32: logsumexp over the slots of an expert
    losses: dict[str, Tensor]

    @property
    def weights_TK(self) -> Tensor:
        """What a token takes from each expert, most first."""
        return self._weights_TE().sort(dim=-1, descending=True, stable=True).values

    @property
    def ids_TK(self) -> Tensor:
        """All experts, int32, most first."""
        return self._weights_TE().argsort(dim=-1, descending=True, stable=True).int()

    def _weights_TE(self) -> Tensor:
        T, E = self.logits_TE.shape
        return self.combine_TM.view(T, E, -1).sum(-1)


Routing = Assignment | Mixture


@dataclass(frozen=True, slots=True)
class Rows:
    """Side information about the T rows of a forward pass; each part may be None."""

    token_ids_T: Tensor | None = None
    sequence_T: Tensor | None = None  # which sequence each row belongs to
    mask_T: Tensor | None = None  # False: padding, not counted in losses; it takes no other row's place
    generator: torch.Generator | None = None
    replay_ids_TK: Tensor | None = None  # route exactly so again (recomputation, preference training)
    edits: RowEdits | None = None  # what requests asked to change; the top-k router alone knows them
