"""What a router says, and what it may know about the rows it routes.

Shapes: T tokens, E experts, K experts per token.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Assignment", "Rows"]


class Assignment(NamedTuple):
    """Which experts each token goes to; slot 0 is the best. An unused slot has id -1 and weight 0."""

    ids_TK: Tensor  # int32
    weights_TK: Tensor  # float32
    logits_TE: Tensor  # float32, raw: before softmax and any bias
    losses: dict[str, Tensor]  # auxiliary losses the router itself defines


@dataclass(frozen=True, slots=True)
class Rows:
    """Side information about the T rows of a forward pass; each part may be None."""

    token_ids_T: Tensor | None = None
    sequence_T: Tensor | None = None  # which sequence each row belongs to
    mask_T: Tensor | None = None  # False: padding, not counted in losses
    generator: torch.Generator | None = None
    replay_ids_TK: Tensor | None = None  # route exactly so again (recomputation, preference training)
