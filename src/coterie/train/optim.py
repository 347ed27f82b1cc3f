"""AdamW, or Muon and AdamW, on float32 master weights, for a model that may itself be held in bfloat16.

Small updates vanish in bfloat16 (8 bits of mantissa), so the optimizer owns a float32 copy of every parameter, steps
that, and rounds it into the model. In float32 and float64 the two are the same memory. Of a model that is divided among
ranks each rank's optimizer knows the parts that the rank holds. A kernel of ours clips, steps and rounds in one sweep
over memory, which is all that an update costs, on a CPU and on a card; elsewhere it is torch's own AdamW.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError
from coterie.kernels import gpu_training, training
from coterie.train.muon import scaled_update
from coterie.train.parts import as_part_of, laid_out_as, part_of, whole_matrices

__all__ = ["MasterOptimizer"]

_MOMENTUM = 0.95  # of Muon, with Nesterov's look ahead


class MasterOptimizer:
    """Decoupled weight decay (arXiv 1711.05101) on matrices only; norms' gains are left alone.

    `muon` names the parameters that Muon updates, each with the rows at which fused matrices are cut apart (none: it is
    one matrix, or a stack of them); AdamW updates the others. `reduce` sums a number over ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        muon: dict[str, tuple[int, ...]] | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda number: number,
    ):
        self._weight_decay, self._muon_rows, self._reduce = weight_decay, muon or {}, reduce
        self._pairs = [(name, p, _master(p)) for name, p in model.named_parameters()]
        masters = {name: master for name, _, master in self._pairs}
        self._momentum = {name: torch.zeros_like(masters[name]) for name in self._muon_rows}
        decayed = [master for name, p, master in self._pairs if p.ndim > 1 and name not in self._muon_rows]
        plain = [master for _, p, master in self._pairs if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)
        self._grads: dict[str, Tensor] = {}  # of masters that are not the parameters; a first one as it came

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the masters: in bfloat16 the small ones would be lost."""
        for name, p, master in self._pairs:
            if p is not master and p.grad is not None:
                grad, p.grad = part_of(p.grad), None
                before = self._grads.get(name)
                self._grads[name] = grad if before is None else before.to(master.dtype).add_(grad)

    def step(self, lr: float, clip: float) -> float:
        """Clip to a global norm of `clip`, update, empty the gradients; returns the norm before clipping.

        Where that norm is not finite nothing is updated: one NaN would spoil every weight.
        """
        self.collect()
        grads = {name: p.grad if p is master else self._grads.get(name) for name, p, master in self._pairs}
        present = {name: grad for name, grad in grads.items() if grad is not None}
        norm = self._norm(list(present.values()))
        if math.isfinite(norm):
            with torch.no_grad():
                self._update(present, lr, min(1.0, clip / (norm + 1e-6)))
        self.forget_gradients()
        return norm

    def _norm(self, grads: list[Tensor]) -> float:
        if grads and all(type(g) is Tensor and g.is_cuda for g in grads):
            norms = torch.stack(torch._foreach_norm(grads, 2, torch.promote_types(grads[0].dtype, torch.float32)))
            squares = norms.double().square().sum()
        elif training.is_usable(*grads) and all(g.is_contiguous() for g in grads):
            squares = torch.tensor(math.fsum(training.square_sum(g) for g in grads), dtype=torch.float64)
        else:
            squares = nn.utils.get_total_norm([g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads])
            squares = squares.double().square()
        return float(self._reduce(squares).sqrt())

    def _update(self, grads: dict[str, Tensor], lr: float, scale: float) -> None:
        """A step with the gradients times `scale`."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        for name, p, master in self._pairs:
            grad = grads.get(name)
            if grad is None:
                continue
            master.grad = None
            if name in self._muon_rows:
                self._muon_step(name, p, master, grad.to(master.dtype).mul_(scale), lr)
            elif _has_kernel(p, master) and all(t.is_contiguous() for t in (p, master)):
                self._native_step(p, master, grad.contiguous(), lr, scale)
            else:
                master.grad = grad.to(master.dtype).mul_(scale)
        self._adam.step()
        for name, p, master in self._pairs:
            if p.dtype != master.dtype and (master.grad is not None or name in self._muon_rows):
                p.copy_(master)

    def _native_step(self, p: Tensor, master: Tensor, grad: Tensor, lr: float, scale: float) -> None:
        """AdamW's update of one parameter; torch's own state is kept, so that either may go on with it."""
        state, group = self._adam.state[master], self._adam.param_groups[0]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        state["step"] += 1
        n, (beta1, beta2) = int(state["step"]), group["betas"]
        keep = 1 - lr * self._weight_decay if p.ndim > 1 else 1.0
        step, root = lr / (1 - beta1**n), (1 - beta2**n) ** 0.5
        settings = training.AdamSettings(scale, keep, beta1, beta2, step, root, group["eps"])
        out = None if p.dtype == master.dtype else p
        training.operations(master, grad).adam_(master, grad, state["exp_avg"], state["exp_avg_sq"], out, settings)
        torch.autograd.graph.increment_version(p)

    def _muon_step(self, name: str, p: Tensor, master: Tensor, grad: Tensor, lr: float) -> None:
        momentum = self._momentum[name].mul_(_MOMENTUM).add_(grad)
        ahead = grad.add(momentum, alpha=_MOMENTUM)
        master.mul_(1 - lr * self._weight_decay)
        matrices = whole_matrices(p, ahead)
        update = as_part_of(matrices, scaled_update(part_of(matrices), self._muon_rows[name]))
        master.sub_(part_of(laid_out_as(p, update)), alpha=lr)

    def forget_gradients(self) -> None:
        self._grads.clear()
        for _, p, master in self._pairs:
            p.grad = master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs: masters, both moments, step counts; DTensors where the model's are."""
        tensors = {}
        for name, p, master in self._pairs:
            tensors[f"master/{name}"] = as_part_of(p, master.detach())
            for key, value in self._adam.state[master].items():
                tensors[f"{key}/{name}"] = as_part_of(p, value) if value.ndim else value
            if name in self._momentum:
                tensors[f"momentum/{name}"] = as_part_of(p, self._momentum[name])
        return tensors

    def empty(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor of `state` that is to be read, laid out as its parameter."""
        p = next((p for name, p, _ in self._pairs if key.partition("/")[2] == name), None)
        part = torch.empty(shape if p is None else part_of(p).shape, dtype=dtype)
        return part if p is None else as_part_of(p, part)

    def load_state(self, tensors: dict[str, Tensor], *, where: Path | str = "the state") -> None:
        """Take over what `state` gave, onto the device of the model; `CheckpointError` where names or shapes differ."""
        for name, p, _ in self._pairs:
            found = tensors.get(f"master/{name}")
            if found is None or found.shape != p.shape:
                shape = "missing" if found is None else f"of shape {list(found.shape)}"
                raise CheckpointError(
                    f"{where}: the weight {name!r} is {shape}, expected shape {list(p.shape)}; start again with --fresh"
                )
        with torch.no_grad():
            for name, p, master in self._pairs:
                master.copy_(part_of(tensors[f"master/{name}"]))
                if p.dtype != master.dtype:
                    p.copy_(master)
                if name in self._momentum:
                    self._momentum[name].copy_(part_of(tensors[f"momentum/{name}"]))
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{name}" in tensors]  # none at step 0
                parts = {k: part_of(tensors[f"{k}/{name}"]) for k in keys}
                of_step = "cpu" if _has_kernel(p, master) else master.device  # where the next update looks for it
                self._adam.state[master] = {
                    k: part.to(of_step if k == "step" else master.device, copy=True) for k, part in parts.items()
                }


def _has_kernel(p: Tensor, master: Tensor) -> bool:
    """Whether AdamW's update of a parameter is a kernel of ours, whatever its gradient: its step is counted here."""
    return gpu_training.is_usable(p, master) or training.is_usable(p, master)


def _master(p: Tensor) -> Tensor:
    """What is stepped: the parameter itself, or the part of it that is here, or a float32 copy of one in 16 bits."""
    if p.dtype not in (torch.float32, torch.float64):
        return p.detach().float()
    part = part_of(p)
    return p if part is p else part.detach()
