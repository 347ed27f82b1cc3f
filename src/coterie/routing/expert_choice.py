"""Expert choice: each expert takes the tokens that want it most, all equally many (arXiv 2202.09368, section 3).

S = softmax over experts; expert e takes the T·K/E tokens of largest S[:, e], so a token has K experts on average, and
some have none. Whether a token is taken depends on all the others, later ones too: such a model cannot generate text,
and what it says about a text it has seen whole is not what it would have said word by word. Padding is never taken.
Shapes: T tokens, D model width, E experts, K experts a token on average, J slots a token (the most any token has).
"""

import torch
from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best
from coterie.routing.router import Choice, Router

__all__ = ["ExpertChoiceRouter"]


class ExpertChoiceRouter(Router):
    kind = "expert_choice"

    @property
    def is_causal(self) -> bool:
        return False

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        share_TE = logits_TE.softmax(-1)
        if rows.replay_ids_TK is not None:
            return rows.replay_ids_TK, share_TE.gather(-1, rows.replay_ids_TK.long().clamp(min=0)), {}
        is_taken_TE = self._taken(share_TE.detach(), rows.mask_T)
        n_slots = max(1, int(is_taken_TE.sum(-1).max())) if len(x_TD) else 1
        ids_TJ = best(share_TE.detach().masked_fill(~is_taken_TE, -1.0), n_slots)
        weights_TJ = share_TE.gather(-1, ids_TJ)
        return ids_TJ.masked_fill(~is_taken_TE.gather(-1, ids_TJ), -1), weights_TJ, {}

    def _taken(self, share_TE: Tensor, mask_T: Tensor | None) -> Tensor:
        """Which tokens each expert takes; of equals the earlier."""
        n_tokens = len(share_TE) if mask_T is None else int(mask_T.sum())
        n_each = min(n_tokens, -(-n_tokens * self.top_k // share_TE.shape[1]))
        wanted_TE = share_TE if mask_T is None else share_TE.masked_fill(~mask_T[:, None], -1.0)
        order_ET = wanted_TE.T.argsort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(share_TE, dtype=torch.bool).scatter_(0, order_ET[:, :n_each].T, True)
