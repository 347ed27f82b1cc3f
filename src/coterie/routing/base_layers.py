"""BASE layers: while training, tokens are assigned so that all experts get equally many (arXiv 2103.16716).

The assignment makes the sum of the tokens' logits as large as it can be with ceil(T / E) places an expert; it is found
by an auction. The weight is sigmoid(logit), and no balance loss is needed. When the model is used each token goes to
its own best expert, which looks at no other token. Shapes: T tokens, D model width, E experts, K = 1.
"""

import torch
from torch import Tensor

from coterie.routing.assignment import Rows
from coterie.routing.choose import best
from coterie.routing.router import Choice, Router, replayed

__all__ = ["BaseRouter", "auction"]


class BaseRouter(Router):
    kind = "base"

    @property
    def is_causal(self) -> bool:
        return not self.training

    def choose(self, x_TD: Tensor, logits_TE: Tensor, rows: Rows) -> Choice:
        ids_T1 = best(logits_TE, 1)
        if self.training and rows.replay_ids_TK is None:
            if rows.mask_T is None:
                ids_T1 = auction(logits_TE.detach())[:, None]
            else:
                ids_T1[rows.mask_T] = auction(logits_TE.detach()[rows.mask_T])[:, None]
        return ids_T1, logits_TE.gather(-1, replayed(ids_T1, rows)).sigmoid(), {}


def auction(scores_TE: Tensor, precision: float = 1e-2, most: int = 200) -> Tensor:
    """An expert for each token, at most ceil(T / E) each; the sum of their scores is about the largest there is.

    Bertsekas' auction for tokens and places (1992): a token without a place bids for the expert that leaves it most
    after the price, as much as it would lose with its second choice and a step more; a full expert keeps its highest
    bids, and its price is the lowest of those. The sum ends within T · precision · range of the best. Where `most`
    rounds do not do, whoever is left takes what is free. -> int64 [T].
    """
    T, E = scores_TE.shape
    if T == 0 or E == 1:
        return torch.zeros(T, dtype=torch.int64, device=scores_TE.device)
    room, span = -(-T // E), float(scores_TE.amax() - scores_TE.amin())
    if span == 0:
        return torch.arange(T, device=scores_TE.device) // room
    indifferent_nE = scores_TE.new_zeros(room * E - T, E)  # they take the places that would stay free
    scores_TE = torch.cat([scores_TE, indifferent_nE]).double()
    owner_T = _bid(scores_TE, _first_prices(scores_TE, precision * span), precision * span, room, most)
    return _fill_up(scores_TE, owner_T, room)[:T]


def _first_prices(scores_TE: Tensor, step: float, most: int = 8) -> Tensor:
    """Prices at which demand is about even, so that few are left to bid against each other: float64 [E].

    Demand is a softmax of what each expert leaves a token, ever harder; a price rises with the logarithm of it.
    """
    scores_ET = scores_TE.T.contiguous().float()
    price_E1 = torch.zeros_like(scores_ET[:, :1])
    for softness in (256, 64, 16, 4, 1):
        for _ in range(most):
            demand_E1 = ((scores_ET - price_E1) / (softness * step)).softmax(0).mean(1, keepdim=True)
            price_E1 = price_E1 + softness * step * (demand_E1 * len(scores_ET)).clamp(min=1e-6).log()
    return price_E1.squeeze(1).double()


def _bid(scores_TE: Tensor, price_E: Tensor, step: float, room: int, most: int) -> Tensor:
    """Rounds of bids from these prices, which rise in place; -1: no place."""
    owner_T = torch.full((len(scores_TE),), -1, device=scores_TE.device)
    bid_T = torch.zeros(len(scores_TE), dtype=torch.float64, device=scores_TE.device)
    for _ in range(most):
        waiting = (owner_T < 0).nonzero().squeeze(1)
        if len(waiting) == 0:
            break
        gain = (scores_TE[waiting] - price_E).topk(2)
        owner_T[waiting] = gain.indices[:, 0]
        bid_T[waiting] = price_E[gain.indices[:, 0]] + gain.values[:, 0] - gain.values[:, 1] + step
        _keep_highest(owner_T, bid_T, price_E, room)
    return owner_T


def _keep_highest(owner_T: Tensor, bid_T: Tensor, price_E: Tensor, room: int) -> None:
    """Each expert lets go of all but its `room` highest bids; in place."""
    by_bid = bid_T.argsort(descending=True, stable=True)
    order = by_bid[owner_T[by_bid].argsort(stable=True)]
    order = order[owner_T[order] >= 0]
    sizes_E = torch.bincount(owner_T[order], minlength=len(price_E))
    rank = torch.arange(len(order), device=order.device) - (sizes_E.cumsum(0) - sizes_E)[owner_T[order]]
    last = order[rank == room - 1]
    price_E[owner_T[last]] = bid_T[last]
    owner_T[order[rank >= room]] = -1


def _fill_up(scores_TE: Tensor, owner_T: Tensor, room: int) -> Tensor:
    """Tokens without a place take the best free one, in their order."""
    free = room - torch.bincount(owner_T[owner_T >= 0], minlength=scores_TE.shape[1])
    for t in (owner_T < 0).nonzero().squeeze(1).tolist():
        e = scores_TE[t].masked_fill(free <= 0, -torch.inf).argmax()
        owner_T[t], free[e] = e, free[e] - 1
    return owner_T
