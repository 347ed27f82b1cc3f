"""How many bits a model needs for a byte of text, over windows that each start with BOS.

Bits per byte compare across vocabularies; perplexity per token does not. Shapes: B windows, S positions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from coterie.errors import DataError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.model.norm import Linear, Projection
from coterie.routing import Rows
from coterie.routing.balance import expert_counts
from coterie.train.loss import linear_cross_entropy

__all__ = ["Score", "score_tokens"]

_BLOCK = 1024  # rows whose logits exist together


class Score:
    """Sums over what was scored: nats, tokens, and per sparse layer how many pairs each expert got."""

    def __init__(self) -> None:
        self.nats, self.n_tokens = 0.0, 0
        self.counts_LE: list[torch.Tensor] = []

    def bits_per_byte(self, bytes_per_token: float) -> float:
        return self.nats / math.log(2) / (self.n_tokens * bytes_per_token)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.n_tokens)

    def shares(self) -> list[list[float]]:
        """Per layer and expert, the load as a multiple of its fair share (1 = perfectly balanced)."""
        return [(counts / counts.mean()).tolist() for counts in self.counts_LE]


@torch.inference_mode()
def score_tokens(
    model: Transformer,
    ids: "Sequence[int] | np.ndarray[Any, Any]",
    *,
    window: int,
    batch: int = 4,
    max_windows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Teacher-forced score of `ids` in windows of `window` tokens: row = [BOS, window without its last].

    The rest shorter than a window is scored as one short window. `max_windows` takes that many, evenly spaced.
    Raises `DataError` where there is nothing to score.
    """
    if len(ids) == 0:
        raise DataError("there are no tokens to score; expected at least one")
    starts = list(range(0, len(ids), window))
    if max_windows is not None and len(starts) > max_windows:
        starts = [starts[i * len(starts) // max_windows] for i in range(max_windows)]
    score, bos, done = Score(), model.config.bos_token_id or 0, 0
    while starts:
        rows = [torch.from_numpy(np.array(ids[s : s + window], dtype=np.int64)) for s in starts[:batch]]
        rows = [r for r in rows if len(r) == len(rows[0])]
        starts = starts[len(rows) :]
        _add(score, model, torch.stack(rows), bos)
        done += len(rows)
        progress(done, done + len(starts))
    return score


def _add(score: Score, model: Transformer, targets_BS: torch.Tensor, bos: int) -> None:
    B, S = targets_BS.shape
    targets_BS = targets_BS.to(model.device)
    ids_BS = torch.cat((targets_BS.new_full((B, 1), bos), targets_BS[:, :-1]), 1)
    positions_T = torch.arange(S, device=model.device).repeat(B)
    rows = Rows(sequence_T=torch.arange(B, device=model.device).repeat_interleave(S))  # soft routers mix within one
    out = model(ids_BS.flatten(), positions_T, WholeSequences(B, model.config.sliding_window), rows)
    nats = _nats(model.head, out.hidden_TD, targets_BS.flatten(), model.dtype)
    score.nats += float(nats)
    score.n_tokens += B * S
    counts = [expert_counts(r).double() for r in out.routings]  # float32 stops counting at 2^24
    score.counts_LE = [a + b for a, b in zip(score.counts_LE, counts, strict=True)] if score.counts_LE else counts


def _nats(head: nn.Module, hidden_TD: torch.Tensor, targets_T: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Summed over the rows; a head whose weights are packed is asked for logits, a block of rows at a time."""
    if isinstance(head, Projection) and isinstance(head.linear, Linear):
        return linear_cross_entropy(head.norm(hidden_TD), head.linear.weight, targets_T, dtype)
    blocks = zip(torch.split(hidden_TD, _BLOCK), torch.split(targets_T, _BLOCK), strict=True)
    losses = [functional.cross_entropy(head(x_nD).float(), target_n, reduction="sum") for x_nD, target_n in blocks]
    return torch.stack(losses).sum()
