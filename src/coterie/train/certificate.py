"""Is an upcycled model the dense one? Both read the same tokens in float64; the largest difference of any logit.

One layer of each is in memory at a time, computed by the very modules that run them. Whether they must agree is read
off the routing: for every token and every segment g of the dense block, the weights of the experts that hold g times
their scale must add up to 1 (`upcycle.py` has the formulas). Then a difference of `TOLERANCE` or more is a mistake.
Shapes: T tokens, D model width, V vocabulary, K experts a token, G segments of a dense block.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coterie.config import ModelConfig
from coterie.errors import CheckpointError
from coterie.kernels import rms_norm, rotary_tables
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.routing import Assignment, Routing, Rows

__all__ = ["TOLERANCE", "Certificate", "certify"]

TOLERANCE = 1e-10
_ROUNDING = 1e-12  # of sums of weights in float64
_PIECE = 4096  # rows of the head at a time
Tensors = Callable[[str], Tensor]  # a tensor by canonical name, of any float type


@dataclass(frozen=True)
class Certificate:
    """`lowest` and `highest`: what the weights of a token, times the scale of its experts, add up to for a segment."""

    difference: float  # the largest of two logits
    logit: float  # the largest of the dense model, for comparison
    n_tokens: int
    lowest: float
    highest: float
    is_exact: bool  # the experts hold the dense numbers, none drawn anew
    rounded: float | None = None  # the same difference with the experts of the run, whose type rounds their scale

    @property
    def is_equality_expected(self) -> bool:
        return self.is_exact and max(1 - self.lowest, self.highest - 1) < _ROUNDING

    def sentence(self) -> str:
        found = (
            f"largest logit difference from the dense model {self.difference:.1e} over {self.n_tokens} tokens, in "
            f"float64 (largest logit {self.logit:.3g})"
        )
        if self.rounded is not None:
            found += f", {self.rounded:.1e} with the scale of the experts rounded to the type of the run"
        if self.is_equality_expected:
            return f"{found}; the two are equal but for rounding, as they must be"
        if not self.is_exact:
            return f"{found}; equality is not expected: channels of the experts were drawn anew"
        return (
            f"{found}; equality is not expected: the experts of a token add up to {self.lowest:.3g} to "
            f"{self.highest:.3g} times the dense block"
        )

    def require(self) -> None:
        """`CheckpointError` where the models must be equal and are not."""
        if self.is_equality_expected and not self.difference < TOLERANCE:
            raise CheckpointError(
                f"the upcycled model must equal the dense one and a logit differs by {self.difference:.3g}, expected "
                f"less than {TOLERANCE:g}; do not train it: its experts are not the dense block, or not scaled as they "
                "must be"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "largest_logit_difference": self.difference,
            "largest_logit": self.logit,
            "tokens": self.n_tokens,
            "is_equality_expected": self.is_equality_expected,
            "weights_add_up_to": [self.lowest, self.highest],
            "largest_difference_rounded": self.rounded,
        }


@torch.no_grad()
def certify(
    dense: Tensors, dense_config: ModelConfig, sparse: Tensors, config: ModelConfig, ids: Sequence[int], *,
    scale: float, granularity: int, is_exact: bool,
) -> Certificate:  # fmt: skip
    """Compare on one sequence of token ids; `scale`, `granularity`, `is_exact` are what the upcycling claims."""
    ids_T = torch.tensor(list(ids))
    x_TD, y_TD = (functional.embedding(ids_T, read("embed").double()) for read in (dense, sparse))
    lowest, highest = math.inf, -math.inf
    for layer in range(config.num_hidden_layers):
        x_TD, _ = _through(dense, dense_config, layer, x_TD, ids_T)
        y_TD, routing = _through(sparse, config, layer, y_TD, ids_T)
        low, high = _shares(routing, scale, granularity)
        lowest, highest = min(lowest, low), max(highest, high)
    difference, logit = _logits(dense, dense_config, x_TD, sparse, config, y_TD)
    return Certificate(difference, logit, len(ids_T), lowest, highest, is_exact)


def _through(
    read: Tensors, config: ModelConfig, layer: int, x_TD: Tensor, ids_T: Tensor
) -> tuple[Tensor, Routing | None]:
    """One block in float64, alone in a model of a single layer and a single token."""
    one = Transformer(
        replace(config, num_hidden_layers=1, vocab_size=1, bos_token_id=None, eos_token_id=None), torch.float64
    ).eval()
    for name, tensor in one.tensors().items():
        if name.startswith("layers.0."):
            tensor.copy_(read(name.replace("layers.0.", f"layers.{layer}.", 1)))
    rotary = rotary_tables(torch.arange(len(x_TD)), config.head_dim, config.rope_theta, torch.float64)
    rows = Rows(token_ids_T=ids_T, sequence_T=torch.zeros_like(ids_T))
    y_TD, routing = one.layers[0](x_TD, rotary, WholeSequences(1, config.sliding_window), rows)
    return y_TD, routing


def _shares(routing: Routing | None, scale: float, granularity: int) -> tuple[float, float]:
    """The least and the most that a segment of the dense block counts for in a token; it must be 1."""
    if not isinstance(routing, Assignment):
        return 0.0, 1.0  # a mixture of tokens: no token has experts of its own
    ids_TK, weights_TK = routing.ids_TK, routing.weights_TK.double() * scale
    weights_TK = weights_TK.masked_fill(ids_TK < 0, 0.0)
    sums_GT = torch.stack([(weights_TK * (ids_TK % granularity == g)).sum(1) for g in range(granularity)])
    return float(sums_GT.min()), float(sums_GT.max())


def _logits(
    dense: Tensors, dense_config: ModelConfig, x_TD: Tensor, sparse: Tensors, config: ModelConfig, y_TD: Tensor
) -> tuple[float, float]:
    """The largest difference of two logits and the largest logit of the first, a few rows of the heads at a time."""
    sides = []
    for read, c, hidden_TD in ((dense, dense_config, x_TD), (sparse, config, y_TD)):
        normed_TD = rms_norm(hidden_TD, read("norm").double(), c.rms_norm_eps)
        sides.append((normed_TD, read("embed" if c.tie_word_embeddings else "head")))
    (x_TD, head_VD), (y_TD, other_VD) = sides
    difference = logit = 0.0
    for a, b in zip(torch.split(head_VD, _PIECE), torch.split(other_VD, _PIECE), strict=True):
        of_dense = x_TD @ a.double().T
        logit = max(logit, float(of_dense.abs().max()))
        difference = max(difference, float((of_dense - y_TD @ b.double().T).abs().max()))
    return difference, logit
