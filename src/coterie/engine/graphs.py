"""Decoding on a card as CUDA graphs: a step of a thousand launches is one, and the card never waits for the host.

A graph is captured the first time that a step has so many sequences and so long a page table; smaller steps use the
next larger one, whose idle rows repeat the first sequence, so that they ask for no expert that is not read anyway.
What is captured are the model's own modules, so the numbers are those of a step without graphs. A graph holds
addresses: when the cache moves, all are made anew. Where a model cannot be captured (a router that looks at the host,
too little memory), steps run as they did before, and a warning says so.
Shapes: B sequences, D model width, V vocabulary, L layers, K slots, E experts.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.engine.plan import Plan
from coterie.kernels import gpu
from coterie.kernels.pages import Pages
from coterie.model import Output, Transformer
from coterie.model.attention import Rotary
from coterie.routing import Assignment, Routing

if TYPE_CHECKING:
    from coterie.kernels.triton_attention import Batch

__all__ = ["DecodeGraphs", "bucket"]

_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_PAGES = 32  # the shortest page table of a graph: 2,048 positions
_WARM_UPS = 2  # runs before the capture: Triton compiles, cuBLAS sets itself up

_log = logging.getLogger("coterie.engine")


def bucket(n_sequences: int, n_pages: int) -> tuple[int, int] | None:
    """The sizes of the graph that takes a step, or None beyond the largest.

    Example: 9 sequences of up to 40 pages are a step of the graph of 10 sequences and 64 pages.
    """
    size = next((size for size in _SIZES if size >= n_sequences), None)
    if size is None:
        return None
    pages = _PAGES
    while pages < n_pages:
        pages *= 2
    return size, pages


class DecodeGraphs:
    """`step` runs a step of one token for each of some sequences, or returns None where there is no graph for it."""

    def __init__(self, model: Transformer):
        self._model = model
        self._steps: dict[tuple[int, int], _Step | None] = {}  # None: there was no memory for it
        self._addresses: list[int] | None = None
        self._pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
        self._is_broken = False

    @staticmethod
    def of(model: Transformer) -> "DecodeGraphs | None":
        """None where the model is not on a card that Triton's kernels run on."""
        return DecodeGraphs(model) if gpu.is_here(model.device) and model.dtype in gpu.TYPES else None

    def step(self, ids: Sequence[int], plan: Plan) -> tuple[Output, Tensor] | None:
        """Hidden states and routings, and the logits [B, V], which the next step overwrites."""
        sizes = bucket(len(ids), max(-(-(first + n) // 64) for _, first, n in plan.sequences))
        if self._is_broken or sizes is None:
            return None
        if self._addresses is not plan.store.addresses:
            self._steps.clear()
            self._addresses = plan.store.addresses
        if sizes not in self._steps:
            self._steps[sizes] = self._captured(sizes, ids, plan)
        found = self._steps[sizes]
        return None if found is None else found(ids, plan)

    def _captured(self, sizes: tuple[int, int], ids: Sequence[int], plan: Plan) -> "_Step | None":
        step = _Step(self._model, *sizes, plan.store, plan.window)
        step.fill(ids, plan)
        try:
            step.capture(self._pool)
        except torch.OutOfMemoryError:
            _log.warning("no memory for the graph of %d sequences: they decode without it", sizes[0])
            return None
        except RuntimeError as e:
            _log.warning("this model cannot be captured in a graph, so it decodes without: %s", e)
            self._is_broken = True
            return None
        return step


class _Step:
    """One graph and the buffers it reads and writes; the `KeyValueCache` of its own capture."""

    def __init__(self, model: Transformer, size: int, n_pages: int, store: Pages, window: int | None):
        self._model, self._size, self._store, self._window = model, size, store, window
        device = model.device
        self._batch: Batch = gpu.empty_batch(size, n_pages, device)
        self._at = torch.zeros((2, size), dtype=torch.int64, device=device)  # ids and positions
        self._at_host = torch.zeros((2, size), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._hidden: Tensor | None = None
        self._routings: Sequence[Routing] = ()
        self._stacked: tuple[Tensor, Tensor, Tensor] | None = None

    def attend(self, layer: int, qkv: Tensor, rotary: Rotary, n_kv_heads: int) -> Tensor:
        return gpu.attention(qkv, rotary, self._store, layer, self._batch, self._window)

    def fill(self, ids: Sequence[int], plan: Plan) -> None:
        """The inputs of a step, on their way to the card; those of the last one have arrived before."""
        if self._copied is not None:
            self._copied.synchronize()
        n_idle = self._size - len(ids)
        sequences = [*plan.sequences, *[plan.sequences[0]] * n_idle]
        self._batch.fill(plan.tables, sequences)
        positions = [first for _, first, _ in sequences]
        self._at_host.copy_(torch.tensor([[*ids, *[ids[0]] * n_idle], positions]))
        self._at.copy_(self._at_host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    @torch.inference_mode()
    def capture(self, pool: Any) -> None:
        if self._model.device.type != "cuda":  # the interpreter: what a graph would run
            return
        side = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._run()
        torch.cuda.current_stream(self._model.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._run()
        self._graph = graph

    def _run(self) -> None:
        output = self._model(self._at[0], self._at[1], self, None)
        self._hidden, self._logits = output.hidden_TD, self._model.head(output.hidden_TD)
        self._stacked = _stack(output.routings)
        self._routings = output.routings if self._stacked is None else ()

    @torch.inference_mode()
    def __call__(self, ids: Sequence[int], plan: Plan) -> tuple[Output, Tensor]:
        self.fill(ids, plan)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        B = len(ids)
        assert self._hidden is not None and self._logits is not None
        return Output(self._hidden[:B], self._of_rows(B)), self._logits[:B]

    def _of_rows(self, B: int) -> list[Routing]:
        """Copies, since who asks for routings looks at them later."""
        if self._stacked is None:
            return [_rows(r, B) for r in self._routings]
        parts = [t[:, :B].clone().unbind() for t in self._stacked]
        return [Assignment(ids, weights, logits, {}) for ids, weights, logits in zip(*parts, strict=True)]


def _rows(routing: Routing, B: int) -> Routing:
    assert isinstance(routing, Assignment), "a router that looks at other tokens does not decode"
    ids, weights, logits = (t[:B].clone() for t in (routing.ids_TK, routing.weights_TK, routing.logits_TE))
    return Assignment(ids, weights, logits, {})


def _stack(routings: Sequence[Routing]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The layers' ids, weights and logits, each [L, B, ...], where all are alike: three copies instead of 3·L."""
    shapes = {(r.ids_TK.shape, r.logits_TE.shape) for r in routings if isinstance(r, Assignment)}
    if len(shapes) != 1:
        return None
    ids, weights, logits = zip(*((r.ids_TK, r.weights_TK, r.logits_TE) for r in routings), strict=True)
    return torch.stack(ids), torch.stack(weights), torch.stack(logits)
