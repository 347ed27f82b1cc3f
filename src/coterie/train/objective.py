"""What training makes smaller: cross-entropy, and the losses that keep routers balanced and their logits small.

loss + load · balance + z · z_loss + importance · importance_loss + noisy_load · load_loss; all but the first are means
over the sparse layers. Every counted token of a step weighs the same, however the step is cut into micro-batches.
Shapes: T tokens, B sequences, S positions, D model width, V vocabulary, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.routing import Rows
from coterie.routing.assignment import Routing
from coterie.routing.balance import LoadBalance, importance_loss, translate_coefficient, update_bias, z_loss
from coterie.train.loss import linear_cross_entropy
from coterie.train.recipe import Balance

__all__ = ["Objective"]


class Objective:
    """The losses of one step, micro-batch by micro-batch; `measures` are those of the step so far.

    `reduce` sums a tensor over the ranks of a run. A loss whose coefficient is 0 is measured too, without a gradient.
    """

    def __init__(
        self, model: Transformer, balance: Balance, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ):
        self.model, self._reduce = model, reduce
        c = model.config
        load = translate_coefficient(balance.load, balance.convention, c.num_experts_per_tok, c.num_hidden_layers)
        self._weights = {
            "balance": load, "z": balance.z, "importance": balance.importance, "noisy_load": balance.noisy_load
        }  # fmt: skip
        self._bias_rate = balance.bias
        self._balance = LoadBalance(balance.scope, reduce)
        self._means_of_tokens = ("z", "balance") if balance.scope == "global" else ("z",)  # the others: of rows
        self.start_step()

    def start_step(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._balance.start_step()

    @property
    def counts(self) -> list[Tensor]:
        """Of each sparse layer the pairs that each expert got in the step so far, over all ranks: float32 [E]."""
        return self._balance.counts

    def backward(
        self,
        ids_BS: Tensor,
        targets_BS: Tensor,
        documents_BS: Tensor | None = None,
        *,
        n_tokens: float,
        share: float,
        generator: torch.Generator,
    ) -> None:
        """Adds this micro-batch's gradients: the sum of its token losses over `n_tokens`, and its part of the others.

        `n_tokens` is the number of counted tokens of the whole step (a target below 0 is not counted), `share` this
        micro-batch's part of the step's rows. With `documents_BS` tokens attend within their document alone.
        """
        parts = self._losses(ids_BS, targets_BS, documents_BS, generator)
        n_here = (targets_BS >= 0).sum()  # a tensor: a card is not waited for

        def of_step(name: str, value: Tensor) -> Tensor:
            if name == "loss":
                return value / n_tokens
            return value * n_here / n_tokens if name in self._means_of_tokens else share * value

        total = of_step("loss", parts["loss"])
        for name, weight in self._weights.items():
            if weight and name in parts:
                total = total + weight * of_step(name, parts[name])
        total.backward()  # type: ignore[no-untyped-call]
        for name, value in parts.items():
            scaled = of_step(name, value.detach().double())
            self._sums[name] = self._sums[name] + scaled if name in self._sums else scaled

    def measures(self) -> dict[str, float]:
        """The mean of each loss over the step; "balance_exact" is that of all its tokens at once."""
        values = self._reduce(torch.stack(list(self._sums.values()))).tolist()
        exact = self._balance.exact()
        return dict(zip(self._sums, values, strict=True)) | (
            {"balance_exact": sum(exact) / len(exact)} if exact else {}
        )

    def after_update(self) -> None:
        """Once per optimizer step: the bias of routers that are balanced by one follows the load of the step."""
        if not self._bias_rate:
            return
        for block, counts_E in zip(self._sparse_blocks(), self.counts, strict=True):
            update_bias(block.get_submodule("feed_forward.router"), counts_E, self._bias_rate)

    def _sparse_blocks(self) -> list[torch.nn.Module]:
        return [block for block in self.model.layers if block.is_sparse]

    def _losses(
        self, ids_BS: Tensor, targets_BS: Tensor, documents_BS: Tensor | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        B, S = ids_BS.shape
        model, device = self.model, ids_BS.device
        sequence_T = torch.arange(B, device=device).repeat_interleave(S)
        rows = Rows(ids_BS.flatten(), sequence_T, targets_BS.flatten() >= 0, generator)
        cache = WholeSequences(B, model.config.sliding_window, documents_BS)
        output = model(ids_BS.flatten(), torch.arange(S, device=device).repeat(B), cache, rows)
        hidden_TD, weight_VD = model.head.norm(output.hidden_TD), model.head.get_parameter("linear.weight")
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_BS.flatten(), model.dtype)
        return {"loss": loss} | self._router_losses(output.routings, rows)

    def _router_losses(self, routings: list[Routing], rows: Rows) -> dict[str, Tensor]:
        if not routings:
            zero = torch.zeros((), device=self.model.device)
            return {"balance": zero, "z": zero}
        losses = {
            "balance": self._balance.losses(routings, rows),
            "z": _mean([z_loss(r, rows.mask_T) for r in routings]),
        }
        if self._weights["importance"]:
            losses["importance"] = _mean([importance_loss(r, rows.mask_T) for r in routings])
        noisy = [r.losses["load"] for r in routings if "load" in r.losses]
        return losses | ({"noisy_load": _mean(noisy)} if noisy else {})


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
