"""Changes to who routes where, asked for with a request: experts that may not be taken, a bias, how many a token takes.

Bias, and -inf for a banned expert, are added to the router's logits before the choice; weights are the softmax over the
chosen, as ever. The logits that are reported stay raw. Only of Mixtral's own router (`TopKRouter`).
Shapes: T rows, N different edits in a pass, L layers, E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import RequestError
from coterie.kernels import RouteEdits

__all__ = ["LARGEST_BIAS", "ExpertEdits", "RowEdits", "row_edits"]

LARGEST_BIAS = 1e4


@dataclass(frozen=True, slots=True)
class ExpertEdits:
    """`ban`: (layer, expert) pairs; `bias`: (layer, expert, value) triples; `top_k`: None for the model's own."""

    ban: tuple[tuple[int, int], ...] = ()
    bias: tuple[tuple[int, int, float], ...] = ()
    top_k: int | None = None

    def check(self, config: ModelConfig) -> None:
        """Raises `RequestError` for what this model cannot do."""
        E, L = config.num_local_experts, config.num_hidden_layers
        if E is None:
            raise RequestError("experts cannot be edited: the model is dense, it has none")
        if not config.router.is_plain or config.router.capacity or config.router.jitter:
            raise RequestError(f"experts can only be edited with the top-k router, not with {config.router.kind!r}")
        if self.top_k is not None and not (type(self.top_k) is int and 1 <= self.top_k <= E):
            raise RequestError(f"experts.top_k is {self.top_k!r}, expected a whole number from 1 to {E}")
        if len(self.ban) + len(self.bias) > 2 * L * E:
            raise RequestError(f"experts has more entries than twice the model's {L} layers of {E} experts")
        places = [("ban", pair) for pair in self.ban] + [("bias", (layer, e)) for layer, e, _ in self.bias]
        for name, (layer, expert) in places:
            if not (type(layer) is int and 0 <= layer < L and type(expert) is int and 0 <= expert < E):
                raise RequestError(
                    f"experts.{name} names layer {layer!r}, expert {expert!r}, expected layers 0 to {L - 1} and "
                    f"experts 0 to {E - 1}"
                )
        for _, _, value in self.bias:
            if not (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST_BIAS):
                raise RequestError(f"experts.bias is {value!r}, expected a number from -10000 to 10000")
        self._check_enough_left(E, self.top_k or config.num_experts_per_tok)

    def _check_enough_left(self, E: int, top_k: int) -> None:
        for layer in {layer for layer, _ in self.ban}:
            n_left = E - len({e for at, e in self.ban if at == layer})
            if n_left < top_k:
                raise RequestError(
                    f"experts.ban leaves {n_left} of {E} experts in layer {layer}, but a token takes {top_k}: ban "
                    "fewer, or lower experts.top_k"
                )

    def bias_LE(self, L: int, E: int) -> Tensor:
        """What is added to the logits, float32. Values of the same place add up."""
        bias_LE = torch.zeros(L, E)
        for layer, expert, value in self.bias:
            bias_LE[layer, expert] += value
        for layer, expert in self.ban:
            bias_LE[layer, expert] = -torch.inf
        return bias_LE


@dataclass(frozen=True, slots=True)
class RowEdits:
    """The edits of the rows of a pass, for all layers."""

    of_row_T: Tensor  # int32: which edit, or -1
    bias_NLE: Tensor
    top_k_N: Tensor  # int32
    n_slots: int

    def of_layer(self, layer: int) -> RouteEdits:
        return RouteEdits(self.of_row_T, self.bias_NLE[:, layer].contiguous(), self.top_k_N, self.n_slots)

    def of_all_layers(self) -> RouteEdits:
        """The same with a bias [N, L·E]."""
        return RouteEdits(self.of_row_T, self.bias_NLE.flatten(1), self.top_k_N, self.n_slots)


def row_edits(
    edits: Sequence[ExpertEdits | None], lengths: Sequence[int], config: ModelConfig, device: torch.device | str = "cpu"
) -> RowEdits | None:
    """Those of sequences that have so many rows each, one after the other; None where there is none."""
    unique = list(dict.fromkeys(e for e in edits if e is not None))
    if not unique:
        return None
    assert config.num_local_experts is not None
    of_sequence = torch.tensor([-1 if e is None else unique.index(e) for e in edits], dtype=torch.int32)
    top_k = [e.top_k or config.num_experts_per_tok for e in unique]
    return RowEdits(
        of_sequence.repeat_interleave(torch.tensor(lengths)).to(device),
        torch.stack([e.bias_LE(config.num_hidden_layers, config.num_local_experts) for e in unique]).to(device),
        torch.tensor(top_k, dtype=torch.int32, device=device),
        max(config.num_experts_per_tok, *top_k),
    )
