"""What training makes smaller: cross-entropy, and the losses that keep routers balanced and their logits small.

loss + load · balance + z · z_loss + importance · importance_loss + noisy_load · load_loss; all but the first are means
over the sparse layers. Every counted token of a step weighs the same, however the step is cut into micro-batches.
Shapes: T tokens, B sequences, S positions, D model width, V vocabulary, E experts.
"""

import torch
from torch import Tensor

from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.model.transformer import Output
from coterie.routing import Rows
from coterie.routing.balance import expert_counts, load_balancing_loss, z_loss
from coterie.train.loss import linear_cross_entropy
from coterie.train.recipe import Balance

__all__ = ["Objective"]


class Objective:
    """The losses of one step, micro-batch by micro-batch; `measures` are those of the step so far."""

    def __init__(self, model: Transformer, balance: Balance):
        self.model, self.coefficients = model, balance
        self.start_step()

    def start_step(self) -> None:
        self._sums: dict[str, float] = {}
        self.counts: list[Tensor] = []  # [E] of each sparse layer: the pairs that each expert got in the step so far

    def backward(
        self, ids_BS: Tensor, targets_BS: Tensor, *, n_tokens: float, share: float, generator: torch.Generator
    ) -> None:
        """Adds this micro-batch's gradients: the sum of its token losses over `n_tokens`, the others times `share`.

        `n_tokens` is the number of counted tokens of the whole step, `share` this micro-batch's part of the step.
        """
        parts = self._losses(ids_BS, targets_BS, generator)
        b = self.coefficients
        total = parts["loss"] / n_tokens + share * (b.load * parts["balance"] + b.z * parts["z"])
        total.backward()  # type: ignore[no-untyped-call]
        for key, value in parts.items():
            scale = 1 / n_tokens if key == "loss" else share
            self._sums[key] = self._sums.get(key, 0.0) + float(value.detach()) * scale

    def measures(self) -> dict[str, float]:
        """The mean of each loss over the step."""
        return dict(self._sums)

    def _losses(self, ids_BS: Tensor, targets_BS: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        B, S = ids_BS.shape
        model, device = self.model, ids_BS.device
        sequence_T = torch.arange(B, device=device).repeat_interleave(S)
        rows = Rows(ids_BS.flatten(), sequence_T, targets_BS.flatten() >= 0, generator)
        cache = WholeSequences(B, model.config.sliding_window)
        output = model(ids_BS.flatten(), torch.arange(S, device=device).repeat(B), cache, rows)
        hidden_TD, weight_VD = model.head.norm(output.hidden_TD), model.head.get_parameter("linear.weight")
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_BS.flatten(), model.dtype)
        return {"loss": loss} | self._router_losses(output, rows, loss)

    def _router_losses(self, output: Output, rows: Rows, like: Tensor) -> dict[str, Tensor]:
        zero, n_layers = like.new_zeros(()), max(1, len(output.routings))
        balance = sum((load_balancing_loss(r, rows.mask_T) for r in output.routings), zero) / n_layers
        z = sum((z_loss(r, rows.mask_T) for r in output.routings), zero) / n_layers
        counts = [expert_counts(r, rows.mask_T) for r in output.routings]
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)] if self.counts else counts
        return {"balance": balance, "z": z}
