"""How far a model's next-token probabilities are from an original's, token by token, on the same windows.

For each scored token: KL(original || model) in nats, whether both put the same token first, and what each model takes
for the token that follows. Perplexity alone hides most of this: gains on some tokens pay for losses on others.
Shapes: n rows of a window, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.eval.resample import Estimate, estimate
from coterie.eval.windows import Reader, Window

__all__ = ["Divergence", "compare", "kl_of"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Divergence:
    """One entry a scored token. `text` numbers the text it is of; intervals are over texts."""

    kl: Array
    is_same_top: Array
    nats: Array  # of the model
    nats_original: Array
    text: Array

    def select(self, texts: Sequence[int]) -> "Divergence":
        """The tokens of some texts."""
        kept = np.isin(self.text, np.asarray(texts))
        return Divergence(
            self.kl[kept], self.is_same_top[kept], self.nats[kept], self.nats_original[kept], self.text[kept]
        )

    def mean_kl(self) -> Estimate:
        return self._mean(self.kl)

    def agreement(self) -> Estimate:
        """Share of tokens on which both would choose the same next token."""
        return self._mean(self.is_same_top)

    def perplexity(self) -> Estimate:
        return self._mean(self.nats, np.exp)

    def perplexity_original(self) -> Estimate:
        return self._mean(self.nats_original, np.exp)

    def ratio(self) -> Estimate:
        """Perplexity over that of the original, with the interval of the quotient: both read the same tokens."""
        return self._mean(self.nats - self.nats_original, np.exp)

    def quantile(self, q: float) -> float:
        """Of the KL of single tokens."""
        return float(np.quantile(self.kl, q))

    def _mean(self, values: Array, scale: Callable[[Any], Any] = lambda mean: mean) -> Estimate:
        _, group = np.unique(self.text, return_inverse=True)
        return estimate(np.bincount(group, values), np.bincount(group), scale=scale)


@torch.inference_mode()
def compare(
    original: Reader,
    model: Reader,
    windows: Sequence[Window],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Divergence:
    """Both models read each window; `progress` counts scored tokens."""
    total, done, parts = sum(len(window.targets) for window in windows), 0, list[tuple[Array, ...]]()
    for (window, hidden_p), (_, hidden_q) in zip(original.read(windows), model.read(windows), strict=True):
        target_n1 = torch.tensor(window.targets)[:, None]
        row = 0
        for logits_p, logits_q in zip(original.logits(hidden_p), model.logits(hidden_q), strict=True):
            part = _judge(logits_p, logits_q.to(logits_p.device), target_n1[row : row + len(logits_p)])
            parts.append((*part, np.full(len(logits_p), window.text)))
            row += len(logits_p)
        done += len(window.targets)
        progress(done, total)
    kl, is_same_top, nats, nats_original, text = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Divergence(kl, is_same_top, nats, nats_original, text)


def _judge(logits_p: Tensor, logits_q: Tensor, target_n1: Tensor) -> tuple[Array, Array, Array, Array]:
    logp_nV, logq_nV = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    target_n1 = target_n1.to(logp_nV.device)
    same = logp_nV.argmax(-1) == logq_nV.argmax(-1)
    found = kl_of(logp_nV, logq_nV), same, -logq_nV.gather(-1, target_n1)[:, 0], -logp_nV.gather(-1, target_n1)[:, 0]
    kl, is_same_top, nats, nats_original = (column.double().cpu().numpy() for column in found)
    return kl, is_same_top, nats, nats_original


def kl_of(logp_nV: Tensor, logq_nV: Tensor) -> Tensor:
    """Σ p (log p - log q) over the vocabulary, float64 [n]; rounding never makes it negative."""
    return (logp_nV.exp() * (logp_nV - logq_nV)).double().sum(-1).clamp_min(0)
