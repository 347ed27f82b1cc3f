"""AdamW, or Muon and AdamW, on float32 master weights, for a model that may itself be held in bfloat16.

Small updates vanish in bfloat16 (8 bits of mantissa), so the optimizer owns a float32 copy of every parameter, steps
that, and rounds it into the model. In float32 the two are the same tensor.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError
from coterie.train.muon import scaled_update

__all__ = ["MasterOptimizer"]

_MOMENTUM = 0.95  # of Muon, with Nesterov's look ahead


class MasterOptimizer:
    """Decoupled weight decay (arXiv 1711.05101) on matrices only; norms' gains are left alone.

    `muon` names the parameters that Muon updates, each with the rows at which fused matrices are cut apart (none: it is
    one matrix, or a stack of them); AdamW updates the others.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        muon: dict[str, tuple[int, ...]] | None = None,
    ):
        self._weight_decay, self._muon_rows = weight_decay, muon or {}
        self._pairs = [
            (name, p, p if p.dtype == torch.float32 else p.detach().float()) for name, p in model.named_parameters()
        ]
        masters = {name: master for name, _, master in self._pairs}
        self._momentum = {name: torch.zeros_like(masters[name]) for name in self._muon_rows}
        decayed = [master for name, p, master in self._pairs if p.ndim > 1 and name not in self._muon_rows]
        plain = [master for _, p, master in self._pairs if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the masters: in bfloat16 the small ones would be lost."""
        for _, p, master in self._pairs:
            if p is not master and p.grad is not None:
                master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
                p.grad = None

    def step(self, lr: float, clip: float) -> float:
        """Clip to a global norm of `clip`, update, empty the gradients; returns the norm before clipping.

        Where that norm is not finite nothing is updated: one NaN would spoil every weight.
        """
        self.collect()
        norm = float(nn.utils.clip_grad_norm_([m for _, _, m in self._pairs], clip))
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._adam.step()
            with torch.no_grad():
                self._muon_step(lr)
                for _, p, master in self._pairs:
                    if p is not master:
                        p.copy_(master)
        self.forget_gradients()
        return norm

    def _muon_step(self, lr: float) -> None:
        for name, _, master in self._pairs:
            if name in self._muon_rows and master.grad is not None:
                momentum = self._momentum[name].mul_(_MOMENTUM).add_(master.grad)
                ahead = master.grad.add(momentum, alpha=_MOMENTUM)
                master.mul_(1 - lr * self._weight_decay)
                master.sub_(scaled_update(ahead, self._muon_rows[name]), alpha=lr)

    def forget_gradients(self) -> None:
        for _, p, master in self._pairs:
            p.grad = master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as plain tensors: masters, both moments, step counts."""
        tensors = {}
        for name, _, master in self._pairs:
            tensors[f"master/{name}"] = master.detach()
            for key, value in self._adam.state[master].items():
                tensors[f"{key}/{name}"] = value
            if name in self._momentum:
                tensors[f"momentum/{name}"] = self._momentum[name]
        return tensors

    def load_state(self, tensors: dict[str, Tensor], *, where: Path | str = "the state") -> None:
        """Take over what `state` gave, onto the device of the model; `CheckpointError` where names or shapes differ."""
        for name, _, master in self._pairs:
            found = tensors.get(f"master/{name}")
            if found is None or found.shape != master.shape:
                shape = "missing" if found is None else f"of shape {list(found.shape)}"
                raise CheckpointError(
                    f"{where}: the weight {name!r} is {shape}, expected shape {list(master.shape)}; "
                    "start again with --fresh"
                )
        with torch.no_grad():
            for name, p, master in self._pairs:
                master.copy_(tensors[f"master/{name}"])
                p.copy_(master)
                if name in self._momentum:
                    self._momentum[name].copy_(tensors[f"momentum/{name}"])
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{name}" in tensors]  # none at step 0
                self._adam.state[master] = {k: tensors[f"{k}/{name}"].to(master.device, copy=True) for k in keys}
