"""The memory of training, part by part: what the optimizer holds to the byte, activations by a formula.

Counted on a model without storage ("meta" tensors), so a model that fits nowhere can be asked about. The formula for
activations follows what the modules keep for backward today; `train.measure` counts the same parts on a real pass, and
a test holds the two together. Shapes: T tokens of a micro-batch, B its rows of S positions, L layers, and the legend of
the model: D width, F expert width, E experts, K a token, H query heads, G key heads, P head width, V vocabulary.
"""

from dataclasses import asdict, dataclass, replace

import torch

from coterie.checkpoint.numbers import size_text
from coterie.config import ModelConfig
from coterie.device import available_memory
from coterie.errors import ResourceError
from coterie.kernels import training_products
from coterie.kernels.training import can_route, has_causal_attention
from coterie.model import Transformer
from coterie.train.initialise import muon_matrices
from coterie.train.loss import highest_bytes
from coterie.train.recipe import Train

__all__ = ["Activations", "Footprint", "Static", "activations", "footprint", "require_memory", "static_memory"]

_CAUSAL_BLOCK, _MOST_BLOCKS = 128, 16  # queries of a block of attention on a CPU, and how many blocks


@dataclass(frozen=True, kw_only=True)
class Static:
    """Bytes that are there from the first step to the last, and those of the gradients. All exact."""

    parameters: int  # how many, not bytes
    weights: int
    masters: int  # float32 copies of what is held in bfloat16
    moments: int
    gradients: int  # float32, one for each parameter
    incoming: int  # in the model's own dtype, before they are added to those: a micro-batch's

    @property
    def held(self) -> int:
        return self.weights + self.masters + self.moments


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes kept for backward by a micro-batch."""

    attention: int
    experts: int  # or the dense feed-forward block; with the router
    norms: int  # and residual sums
    loss: int  # cross-entropy at its highest: gradients of hidden states and head, one block of logits

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a step needs: `peak` is the larger of its two heights, before backward and after it."""

    static: Static
    activations: Activations
    is_accumulating: bool

    @property
    def peak(self) -> int:
        carried = self.static.gradients if self.is_accumulating else 0  # of the micro-batches before
        before_backward = self.activations.total + carried
        after_backward = self.static.incoming + carried if self.is_accumulating else self.static.gradients
        return self.static.held + max(before_backward, after_backward)


def static_memory(config: ModelConfig, train: Train, dtype: torch.dtype) -> Static:
    """Exact, whatever the router: the parameters are those of the model itself."""
    model = Transformer(config, dtype, "meta")
    muon = muon_matrices(model) if train.optimizer == "muon" else {}
    n = weights = masters = moments = incoming = 0
    for name, p in model.named_parameters():
        n += p.numel()
        weights += p.numel() * p.itemsize
        is_master = p.dtype == torch.float32
        masters += 0 if is_master else 4 * p.numel()
        incoming += 0 if is_master else p.numel() * p.itemsize
        moments += 4 * p.numel() if name in muon else 8 * p.numel() + 4  # AdamW: two, and the step's number
    return Static(parameters=n, weights=weights, masters=masters, moments=moments, gradients=4 * n, incoming=incoming)


def require_memory(config: ModelConfig, train: Train, dtype: torch.dtype, device: torch.device, n_ranks: int) -> None:
    """`ResourceError` where what a run always holds is more than is free: the system would end it without a word."""
    static, there = static_memory(config, train, dtype), available_memory(device)
    need = static.held // n_ranks
    if need > there:
        each = f" on each of {n_ranks} ranks" if n_ranks > 1 else ""
        raise ResourceError(
            f"training {static.parameters:,} parameters takes {size_text(need)}{each} for weights, masters and moments "
            f"alone, and {size_text(there)} are free; make [model] smaller (`coterie plan` says what a recipe needs)"
        )


def activations(
    config: ModelConfig, train: Train, dtype: torch.dtype, rows: int, sequence: int, device: str = "cpu"
) -> Activations:
    """Of a micro-batch of `rows` rows. With recompute: the inputs of all blocks, and one block's insides."""
    c, b, T = config, dtype.itemsize, rows * sequence
    D, L = c.hidden_size, c.num_hidden_layers
    layer = _layer(c, b, rows, sequence, device)
    inputs = T * D * b  # of the last norm, and with recompute of each block
    if train.recompute:
        inputs += L * T * D * b
    else:
        layer = Activations(**{part: n * L for part, n in asdict(layer).items()})
    turns = T * 2 * c.head_dim * b  # cosines and sines, which all layers share
    loss = highest_bytes(T, D, c.vocab_size, dtype, device)
    return replace(layer, attention=layer.attention + turns, norms=layer.norms + inputs, loss=loss)


def _layer(c: ModelConfig, b: int, rows: int, sequence: int, device: str) -> Activations:
    T, D, F, K = rows * sequence, c.hidden_size, c.intermediate_size, c.num_experts_per_tok
    query, keys = c.num_attention_heads * c.head_dim, 2 * c.num_key_value_heads * c.head_dim
    attention = T * (query + keys + query) * b  # turned queries and keys, values, the input of the output product
    if device == "cpu":
        attention += _weights(c, b, rows, sequence)
    if c.is_sparse and device == "cuda" and b == 2:  # gate and up of each pair; the router reads the rows as they are
        experts, kept = T * K * 2 * F * b, 3
    elif c.router.kind == "soft" and c.num_local_experts:  # the same of each slot; rows in float32, mixing both ways
        slots = c.num_local_experts * c.router.slots
        experts, kept = rows * slots * (2 * F + D) * b + T * D * (8 if b == 4 else 12 + b) + 6 * T * slots * 4, 3
    elif c.is_sparse:  # gate and up of each pair; its row, and all rows for the router
        row_of_pair, row_of_router = _kept_rows(c, b)
        experts, kept = T * K * (2 * F * b + row_of_pair) + T * row_of_router, 3
    else:  # gate and up, silu(gate), the product
        experts, kept = T * 4 * F * b, 4
    return Activations(attention=attention, experts=experts, norms=kept * T * D * b, loss=0)


def _kept_rows(c: ModelConfig, b: int) -> tuple[int, int]:
    """Bytes of a pair's row and of the router's row on a CPU.

    The native experts in bf16 keep no rows by pair; the native router reads rows as they are, torch's makes them wide.
    """
    D, E = c.hidden_size, c.num_local_experts or 0
    x = torch.empty(0, D, dtype=torch.float32 if b == 4 else torch.bfloat16)
    is_whole = training_products.has_products(x, x)
    is_read = b == 4 or can_route(x, torch.empty(E, 0))
    return (0 if is_whole else D * b), D * (b if is_read else b + 4)


def _weights(c: ModelConfig, b: int, rows: int, sequence: int) -> int:
    """Of the weights of attention on a CPU: natively a number a query is kept, by torch every block with its keys."""
    H, G = c.num_attention_heads, c.num_key_value_heads
    dtype = torch.float32 if b == 4 else torch.bfloat16
    if has_causal_attention(torch.empty(1, H + 2 * G, c.head_dim, dtype=dtype), G):
        return rows * sequence * H * 4
    size = max(_CAUSAL_BLOCK, -(-sequence // _MOST_BLOCKS))
    ends = [min(start + size, sequence) for start in range(0, sequence, size)]
    seen = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
    return rows * H * seen * b


def footprint(
    config: ModelConfig, train: Train, dtype: torch.dtype, rows: int, sequence: int, device: str = "cpu"
) -> Footprint:
    """Of a step whose micro-batches have `rows` rows of `sequence` positions; `device` is a type, cpu or cuda."""
    return Footprint(
        static=static_memory(config, train, dtype),
        activations=activations(config, train, dtype, rows, sequence, device),
        is_accumulating=train.accumulate > 1,
    )
