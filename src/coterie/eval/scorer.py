"""How likely continuations are after their contexts, many at once, each shared beginning read once.

All pairs become trees of what they share (`prefix_tree.py`), walked depth first: a pass reads the nodes that are ready
until it has `CHUNK` tokens, each in a slot of the cache that begins as a copy of its parent's, or is the parent's where
no other child needs it. Batches and chunks change no bit where the native kernels run.
Shapes: T tokens of a pass, n scored rows, D model width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from coterie.engine.request import require_decoding
from coterie.engine.runner import CHUNK, Runner
from coterie.errors import CheckpointError, ContextError
from coterie.eval.prefix_tree import Node, grow
from coterie.model import Output, Transformer
from coterie.routing import Assignment, Routing

__all__ = ["Pair", "Scorer", "fit"]

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context and of what follows; neither is empty
Seen = Callable[[Sequence[int], Output, int, int], None]  # ids, their pass, a pair they are of, the first one's place
Done = Callable[[int, float, bool], None]  # a pair, its log-probability, and whether it is greedy

_MOST_SLOTS = 64
_CACHE_BYTES = 1 << 30  # of keys and values, before fewer texts are held at once


def fit(context: Sequence[int], continuation: Sequence[int], limit: int) -> tuple[Sequence[int], bool]:
    """The end of the context that a model of `limit` tokens can read, and whether its beginning is lost.

    The last token is not read, only predicted: the two may have `limit` + 1 tokens together, as in lm-eval.
    """
    if len(continuation) > limit:
        raise ContextError(f"a continuation is {len(continuation)} tokens, but the model's context is {limit}")
    room = limit + 1 - len(continuation)
    return (context[-room:], True) if len(context) > room else (context, False)


@dataclass(slots=True)
class _Wanted:
    """A row of a node's output, the token it should predict, and where the answer goes."""

    row: int
    target: int
    pair: int


class Scorer:
    """A model that scores pairs. `n_read` counts the tokens it has been fed, `n_asked` those of all pairs."""

    def __init__(self, model: Transformer):
        require_decoding(model.config)
        self._model, self._runner = model, Runner(model)
        self.n_read, self.n_asked = 0, 0

    @torch.inference_mode()
    def score(
        self,
        pairs: Sequence[Pair],
        *,
        seen: Seen | None = None,
        done: Done = lambda pair, logprob, is_greedy: None,
    ) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of each continuation, in order; `done` is told of each as it is known."""
        texts = [(*context, *continuation[:-1]) for context, continuation in pairs]
        self.n_asked += sum(map(len, texts))
        roots = grow(texts)
        walk = _Walk(self._runner, self._most_slots(texts), pairs, roots)
        while work := walk.next_pass():
            output = self._runner.feed([(slot, ids) for _, slot, _, ids in work])
            self.n_read += len(output.hidden_TD)
            if seen is not None:
                _tell(seen, work, output, walk)
            for pair in self._judge(work, output, walk):
                if len(walk.logprobs[pair]) == len(pairs[pair][1]):
                    done(pair, *walk.result(pair))
            walk.finish(work)
        return [walk.result(pair) for pair in range(len(pairs))]

    def _most_slots(self, texts: Sequence[Sequence[int]]) -> int:
        """How many texts may be held at once: keys and values of the longest, times so many, fit the budget."""
        c = self._model.config
        n_places = max(64, max(map(len, texts), default=0))
        n_places = n_places if c.sliding_window is None else min(n_places, c.sliding_window)
        size = torch.empty((), dtype=self._model.cache_dtype).element_size()
        each = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size * n_places
        return max(1, min(_MOST_SLOTS, _CACHE_BYTES // each))

    def _judge(self, work: "list[_Part]", output: Output, walk: "_Walk") -> Iterable[int]:
        """Note what the pass says of the tokens to come; the pairs it says something of."""
        rows, targets, pairs = [], [], []
        start = 0
        for node, _, first, ids in work:
            for w in walk.wanted.get(node, ()):
                if first <= w.row < first + len(ids):
                    rows.append(start + w.row - first)
                    targets.append(w.target)
                    pairs.append(w.pair)
            start += len(ids)
        if not rows:
            return ()
        device = output.hidden_TD.device
        unique_n, place_m = torch.unique(torch.tensor(rows, device=device), return_inverse=True)
        target_m = torch.tensor(targets, device=device)
        logits_nV = self._runner.logits(output.hidden_TD[unique_n]).float()
        best_n = logits_nV.argmax(-1)
        logprob_m = logits_nV.log_softmax(-1)[place_m, target_m].double()
        if not bool(torch.isfinite(logprob_m).all()):
            _refuse(logits_nV)
        greedy_m = best_n[place_m] == target_m
        for pair, logprob, greedy in zip(pairs, logprob_m.tolist(), greedy_m.tolist(), strict=True):
            walk.logprobs[pair].append(logprob)
            walk.is_greedy[pair] &= greedy
        return dict.fromkeys(pairs)


_Part = tuple[Node, int, int, Sequence[int]]  # a node, its slot, the first of its tokens in this pass, and these tokens


class _Walk:
    """Which nodes are ready, where each one's keys and values lie, and what has been found out."""

    def __init__(self, runner: Runner, most_slots: int, pairs: Sequence[Pair], roots: list[Node]):
        self.logprobs: list[list[float]] = [[] for _ in pairs]
        self.is_greedy = [True] * len(pairs)
        self.wanted, self.pair_of = _wanted(pairs, roots)
        self._cache, self._most = runner.cache, most_slots
        self._ready = list(reversed(roots))
        self._slots: dict[Node, int] = {}
        self._done: dict[Node, int] = {}  # tokens of a node read in passes before
        self._waiting: dict[Node, int] = {}  # children without a slot
        self._free: list[int] = []
        self._n_slots = 0

    def next_pass(self) -> list[_Part]:
        room, work = CHUNK, list[_Part]()
        while self._ready and room and (not work or self._free or self._n_slots < self._most):
            node = self._ready.pop()
            if node not in self._slots:
                self._slots[node] = self._slot_for(node)
            done = self._done.get(node, 0)
            ids = node.ids[done : done + room]
            work.append((node, self._slots[node], done, ids))
            room -= len(ids)
        return work

    def result(self, pair: int) -> tuple[float, bool]:
        return math.fsum(self.logprobs[pair]), self.is_greedy[pair]

    def finish(self, work: list[_Part]) -> None:
        """What was read makes its children ready, or its slot free."""
        for node, slot, done, ids in reversed(work):
            if done + len(ids) < len(node.ids):
                self._done[node] = done + len(ids)
                self._ready.append(node)
                continue
            self.wanted.pop(node, None)
            self._waiting[node] = len(node.children)
            self._ready += reversed(node.children)
            if not node.children:
                self._cache.clear(slot)
                self._free.append(slot)

    def _slot_for(self, node: Node) -> int:
        parent = node.parent
        if parent is not None:
            self._waiting[parent] -= 1
            if not self._waiting[parent]:
                return self._slots[parent]  # nobody else needs it
        slot = self._free.pop() if self._free else self._n_slots
        self._n_slots = max(self._n_slots, slot + 1)
        self._cache.reserve(slot + 1)
        if parent is None:
            self._cache.clear(slot)
        else:
            self._cache.copy(self._slots[parent], slot)
        return slot


def _wanted(pairs: Sequence[Pair], roots: list[Node]) -> tuple[dict[Node, list[_Wanted]], dict[Node, int]]:
    """By node: the rows that predict a token of a continuation, and a pair that the node belongs to."""
    wanted: dict[Node, list[_Wanted]] = {}
    pair_of: dict[Node, int] = {}
    for end in _all(roots):
        for pair in end.texts:
            context, continuation = pairs[pair]
            at: Node | None = end
            while at is not None and pair_of.setdefault(at, pair) >= 0:
                # row p of the text predicts token p + 1, which is token p + 1 - len(context) of the continuation
                for p in range(max(at.first, len(context) - 1), at.first + len(at.ids)):
                    target = continuation[p + 1 - len(context)]
                    wanted.setdefault(at, []).append(_Wanted(p - at.first, target, pair))
                    if p + 1 - len(context) == len(continuation) - 1:
                        break
                at = at.parent
    return wanted, pair_of


def _all(roots: list[Node]) -> list[Node]:
    found, stack = [], list(roots)
    while stack:
        found.append(node := stack.pop())
        stack += node.children
    return found


def _tell(seen: Seen, work: list[_Part], output: Output, walk: _Walk) -> None:
    row = 0
    for node, _, first, ids in work:
        rows = slice(row, row + len(ids))
        part = Output(output.hidden_TD[rows], [_rows_of(r, rows) for r in output.routings])
        seen(ids, part, walk.pair_of[node], node.first + first)
        row += len(ids)


def _rows_of(routing: Routing, rows: slice) -> Assignment:
    return Assignment(routing.ids_TK[rows], routing.weights_TK[rows], routing.logits_TE[rows], {})


def _refuse(logits_nV: torch.Tensor) -> None:
    if not bool(torch.isfinite(logits_nV.amax(-1)).all()):
        raise CheckpointError(
            "the model answers with logits that are not numbers (NaN or infinity), so nothing can be scored: its "
            "weights are damaged (try: coterie verify MODEL) or overflow in this dtype (try float32)"
        )
