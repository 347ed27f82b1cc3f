"""The sparse block with gradients: pairs sorted by expert, one matrix product an expert, nothing padded.

Kept for backward: the rows by expert and gate and up before SwiGLU, which is computed again. The gradient of a router
weight g is <a, d>, with a = silu(gate) · up of the pair and d = downᵀ · grad of its token: exact also where g is 0, and
no output of an expert is kept for it (SonicMoE, arXiv 2512.14080, section 3). Weights' gradients are written once, in
slices of one tensor; a `.grad` that is there already takes them in place.

On a card of Hopper's kind or later it is `gpu_training`'s grouped products, and nothing waits for the counts.
In bf16 the whole block is two native calls where the processor multiplies that, and x is kept instead of rows by
expert. Elsewhere in 16 bits on a CPU torch compiles a product anew for every number of rows that it meets, which takes
as long as a quarter of the product. There
an expert's slices are a little too long, a multiple of 32 rows: what a product writes beyond its expert the next
expert's overwrites, and in sums over rows the rows beyond are zeros.
Shapes: T tokens, K slots, E experts, D width, F expert width, N pairs with an expert, n of one expert.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coterie.kernels import gpu_training, training, training_products

__all__ = ["slice_step", "sparse_ffn_training"]


def sparse_ffn_training(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Σ over slots of weight · down(silu(gate(x)) · up(x)), in float32 and rounded to x's dtype -> [T, D].

    An id of -1 adds nothing, and a weight in its slot gets no gradient. `ids_TK` int32; x and the experts of one dtype.
    """
    weights_TK = weights_TK.to(torch.promote_types(x_TD.dtype, torch.float32))
    if gpu_training.has_grouped_products(x_TD, gate_up_E2FD, down_EDF):
        return gpu_training.sparse_ffn(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)
    function = _NativeFFN if training_products.has_products(x_TD, gate_up_E2FD, down_EDF) else _SparseFFN
    y_TD: Tensor = function.apply(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)  # type: ignore[no-untyped-call]
    return y_TD


def slice_step(x: Tensor) -> int:
    """The slices of experts of x are multiples of so many rows: more than 1 where torch multiplies in 16 bits."""
    return 32 if x.is_cpu and x.element_size() == 2 and not training_products.has_products(x) else 1


class _Slices:
    """Where the rows of each expert lie. Example: counts [3, 0, 40] in steps of 32 are the rows 0..32 and 3..67."""

    def __init__(self, counts: list[int], x_TD: Tensor):
        self.counts = counts
        self._step = slice_step(x_TD)
        self.n_rows = sum(counts) + self._step - 1
        self.most = self._length(max(counts, default=0))

    def _length(self, n: int) -> int:
        return -(-n // self._step) * self._step

    def __iter__(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Of each expert that has rows: its number, how many, those rows, and the slice that is a little too long."""
        start = 0
        for e, n in enumerate(self.counts):
            if n:
                yield e, n, slice(start, start + n), slice(start, start + self._length(n))
            start += n

    def gather(self, x_TD: Tensor, token_N: Tensor) -> Tensor:
        """The rows of the pairs, and zeros after them: [n_rows, D]."""
        x_ND = x_TD.new_empty(self.n_rows, x_TD.shape[1])
        torch.index_select(x_TD, 0, token_N, out=x_ND[: len(token_N)])
        x_ND[len(token_N) :].zero_()
        return x_ND


class _SparseFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        (E, D, F), operations = down_EDF.shape, training.operations(x_TD, gate_up_E2FD, down_EDF)
        pairs = operations.sort_pairs(ids_TK, E)
        slices = _Slices(pairs.counts, x_TD)
        x_ND = slices.gather(x_TD, pairs.token_N)
        h_N2F, y_ND = x_TD.new_empty(len(x_ND), 2 * F), x_TD.new_empty(len(x_ND), D)
        a_mF = x_TD.new_empty(slices.most, F)
        for e, _, _, rows in slices:
            a_nF = a_mF[: rows.stop - rows.start]
            torch.mm(x_ND[rows], gate_up_E2FD[e].t(), out=h_N2F[rows])
            operations.swiglu(h_N2F[rows], a_nF)
            torch.mm(a_nF, down_EDF[e].t(), out=y_ND[rows])
        ctx.slices = slices
        ctx.save_for_backward(
            x_ND, h_N2F, weights_TK, pairs.pair_N, pairs.token_N, pairs.place_TK, gate_up_E2FD, down_EDF
        )
        return operations.combine(y_ND, pairs.place_TK, weights_TK)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, h_N2F, weights_TK, pair_N, token_N, place_TK, gate_up_E2FD, down_EDF = ctx.saved_tensors
        operations = training.operations(x_ND, gate_up_E2FD, down_EDF)
        slices, F = ctx.slices, down_EDF.shape[2]
        needs_x, _, _, needs_gate_up, needs_down = ctx.needs_input_grad
        grad_ND = slices.gather(grads[0], token_N)
        weights_N = weights_TK.reshape(-1).index_select(0, pair_N)
        grad_x_ND, dots_N = torch.empty_like(x_ND) if needs_x else x_ND, torch.empty_like(weights_N)
        grad_a_mF, grad_h_m2F = x_ND.new_empty(slices.most, F), x_ND.new_empty(slices.most, 2 * F)
        gate_up, down = _Gradient(gate_up_E2FD, needs_gate_up), _Gradient(down_EDF, needs_down)
        for e, n, own, rows in slices:
            grad_a_nF, grad_h_n2F = (t[: rows.stop - rows.start] for t in (grad_a_mF, grad_h_m2F))
            torch.mm(grad_ND[rows], down_EDF[e], out=grad_a_nF)
            operations.swiglu_backward_(h_N2F[own], weights_N[own], grad_a_nF[:n], grad_h_n2F[:n], dots_N[own])
            grad_a_nF[n:].zero_()
            grad_h_n2F[n:].zero_()
            down.product(e, grad_ND[rows].t(), grad_a_nF)  # it holds weight · a now
            gate_up.product(e, grad_h_n2F.t(), x_ND[rows])
            if needs_x:
                torch.mm(grad_h_n2F, gate_up_E2FD[e], out=grad_x_ND[rows])
        for e in (e for e, n in enumerate(slices.counts) if not n):
            gate_up.zero(e)
            down.zero(e)
        grad_weights = torch.zeros_like(weights_TK).view(-1).index_copy_(0, pair_N, dots_N).view(weights_TK.shape)
        grad_x_TD = operations.combine(grad_x_ND, place_TK, None) if needs_x else None
        return grad_x_TD, None, grad_weights, gate_up.result, down.result


class _NativeFFN(torch.autograd.Function):
    """The same in bf16 as two native calls: a thread takes rows through all products, so none waits for another."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        pairs = training.sort_pairs(ids_TK, len(down_EDF))
        counts_E, gate_up, down = torch.tensor(pairs.counts), gate_up_E2FD.contiguous(), down_EDF.contiguous()
        x_TD = x_TD.contiguous()
        h_N2F, y_ND = training_products.sparse_ffn(x_TD, pairs.token_N, counts_E, gate_up, down)
        ctx.save_for_backward(
            x_TD, h_N2F, weights_TK, pairs.pair_N, pairs.token_N, pairs.place_TK, counts_E, gate_up, down
        )
        return training.combine(y_ND, pairs.place_TK, weights_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, h_N2F, weights_TK, pair_N, token_N, place_TK, counts_E, gate_up, down = ctx.saved_tensors
        needs_x, _, _, needs_gate_up, needs_down = ctx.needs_input_grad
        weights_N = weights_TK.reshape(-1).index_select(0, pair_N)
        grad_x_ND, dots_N, grad_gate_up, grad_down = training_products.sparse_ffn_backward(
            grads[0].contiguous(), token_N, counts_E, weights_N, x_TD, h_N2F, gate_up, down,
            (needs_x, needs_gate_up, needs_down),
        )  # fmt: skip
        grad_weights = torch.zeros_like(weights_TK).view(-1).index_copy_(0, pair_N, dots_N).view(weights_TK.shape)
        grad_x_TD = None if grad_x_ND is None else training.combine(grad_x_ND, place_TK, None)
        return grad_x_TD, None, grad_weights, grad_gate_up, grad_down


class _Gradient:
    """Where the gradient of stacked weights goes, an expert at a time: into `.grad` in place, or a new tensor.

    `result` is what autograd gets: None where there is nothing left to add.
    """

    def __init__(self, weights: Tensor, is_needed: bool):
        self._is_needed = is_needed
        self._adds = is_needed and _can_add_in_place(weights)
        self.result = torch.empty_like(weights) if is_needed and not self._adds else None
        self._at = weights.grad if self._adds else self.result

    def product(self, e: int, a: Tensor, b: Tensor) -> None:
        if self._at is not None:
            if self._adds:
                self._at[e].addmm_(a, b)
            else:
                torch.mm(a, b, out=self._at[e])

    def zero(self, e: int) -> None:
        if self.result is not None:
            self.result[e].zero_()


def _can_add_in_place(weights: Tensor) -> bool:
    """Whether `.grad` is there, wide enough to be added to, and what this backward pass is to add to."""
    if not weights.is_leaf or weights.grad is None or weights.dtype not in (torch.float32, torch.float64):
        return False
    if (
        weights.grad.dtype != weights.dtype
        or not weights.grad.is_contiguous()
        or type(weights) is not torch.nn.Parameter
    ):
        return False
    if weights._backward_hooks or getattr(weights, "_post_accumulate_grad_hooks", None):
        return False
    node = torch.autograd.graph.get_gradient_edge(weights).node
    try:
        return bool(torch._C._will_engine_execute_node(node))  # False in `autograd.grad`, or it raises
    except RuntimeError:
        return False
