"""What all routers but Mixtral's own are built on: a page for each says how it chooses, this one does the rest.

The rest is, in this order: jitter, logits, the choice, a replay of earlier ids, capacity. Shapes: T tokens, D model
width, E experts, K slots a token.
"""

import torch
from torch import Tensor, nn

from coterie.kernels import router_logits
from coterie.router_config import RouterConfig
from coterie.routing.assignment import Assignment, Rows
from coterie.routing.choose import uniform_like, within_capacity

__all__ = ["Choice", "Router", "replayed"]

Choice = tuple[Tensor, Tensor, dict[str, Tensor]]  # ids_TK int64, weights_TK, losses


class Router(nn.Module):
    """`weight` [E, D] is float32 whatever the dtype of the model, so that close logits stay apart.

    Subclasses say `choose`. Noise is drawn only while `self.training`, from `rows.generator` or torch's default one.
    """

    kind = ""

    def __init__(self, weight_ED: Tensor, top_k: int, options: RouterConfig):
        super().__init__()
        self.weight = nn.Parameter(weight_ED)
        self.top_k, self.options = top_k, options

    @property
    def is_causal(self) -> bool:
        """Whether a token's experts depend on it and those before it alone, in the mode that the module is in."""
        return not (self.training and self.options.capacity > 0 and self.options.drop == "probability")

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        """The ids, best first, their weights, and losses of its own. Weights are those of `replayed(ids, rows)`."""
        raise NotImplementedError

    def forward(self, x_TD: Tensor, rows: Rows | None = None) -> Assignment:
        rows = rows or Rows()
        x_TD = self._jittered(x_TD, rows.generator)
        logits_TE = router_logits(x_TD, self.weight)
        ids_TK, weights_TK, losses = self.choose(x_TD, logits_TE, rows)
        if rows.replay_ids_TK is not None:
            ids_TK = rows.replay_ids_TK
        elif self.training and self.options.capacity > 0:
            score_TK = weights_TK if self.options.drop == "probability" else None
            fits_TK = within_capacity(ids_TK, logits_TE.shape[1], self.options.capacity, score_TK, rows.mask_T)
            ids_TK = ids_TK.masked_fill(~fits_TK, -1)
        return Assignment(ids_TK.int(), weights_TK.masked_fill(ids_TK < 0, 0), logits_TE, losses)

    def _jittered(self, x_TD: Tensor, generator: torch.Generator | None) -> Tensor:
        """x times a number around 1 for each element (arXiv 2101.03961, section 2.4)."""
        if not self.training or self.options.jitter == 0:
            return x_TD
        x_TD = x_TD.to(self.weight.dtype)
        return x_TD * (1 + self.options.jitter * (2 * uniform_like(x_TD, generator) - 1))


def replayed(ids_TK: Tensor, rows: Rows) -> Tensor:
    """The ids that weights are to be computed for: those of `rows.replay_ids_TK` where it has some, else the own ones.

    Where a slot was unused the first time, the own choice says what it would have been: the weights of the other slots
    may depend on it.
    """
    if rows.replay_ids_TK is None:
        return ids_TK
    again_TK = rows.replay_ids_TK.long()
    return torch.where(again_TK >= 0, again_TK, ids_TK) if again_TK.shape == ids_TK.shape else again_TK.clamp(min=0)
