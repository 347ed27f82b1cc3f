"""Vocabulary specialisation: which tokens, and which kinds of token, an expert reads (OLMoE, arXiv 2409.02060, 5.4).

For a token x of the vocabulary and an expert i it is N_{x,i} / N_x: of the times x was read, how often i was among the
K experts that read it. K/E is fair. Tokens seen rarely would all look special, so one counts from 20 times on, and
experts' favourites are ordered by the low end of Wilson's interval, not by the share itself.
Shapes: T tokens of a chunk, L layers, E experts, V vocabulary, N tokens of the vocabulary that are counted, R kinds by
domain (row kind · M + domain), M domains.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import percent
from coterie.analysis.scan import Chunk, count, shown_layers
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.token_kinds import KINDS, WORDS, is_code, kinds_of, shown_piece
from coterie.analysis.trace import Trace

__all__ = ["VocabularyReader", "counted_tokens", "kind_of_V"]

_SEEN, _CELLS, _FAVOURITES, _EXPERTS = 20, 4_000_000, 8, 16
_FEW = 200  # tokens of a kind, below which nothing is said of it


def counted_tokens(trace: Trace, most: int) -> NDArray[np.int64]:
    """For each id its place among the tokens seen 20 times at least, the commonest `most` of them; else -1."""
    seen_V = np.bincount(np.asarray(trace.token_ids), minlength=trace.vocab_size)
    place_V = np.full(len(seen_V), -1, dtype=np.int64)
    chosen = np.argsort(-seen_V, kind="stable")[:most]
    chosen = chosen[seen_V[chosen] >= _SEEN]
    place_V[chosen] = np.arange(len(chosen))
    return place_V


def kind_of_V(trace: Trace) -> NDArray[np.int64] | None:
    """The kind of each id; None where the trace has no pieces."""
    if trace.pieces is None:
        return None
    kinds = np.full(max(trace.vocab_size, len(trace.pieces)), KINDS.index("mixed"), dtype=np.int64)
    kinds[: len(trace.pieces)] = kinds_of(trace.pieces)
    return kinds


class VocabularyReader:
    """Counts experts by token, and by kind and domain."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace = trace
        self.place_V = counted_tokens(trace, _CELLS // max(trace.n_layers * trace.n_experts, 1))
        self.id_N = np.argsort(np.where(self.place_V < 0, np.iinfo(np.int64).max, self.place_V), kind="stable")
        self.id_N = self.id_N[: int((self.place_V >= 0).sum())]
        self.kind_V, M = kind_of_V(trace), len(trace.domains)
        L, E = trace.n_layers, trace.n_experts
        self.counts_LNE = np.zeros((L, len(self.id_N), E), dtype=np.int64)
        self.seen_N = np.zeros(len(self.id_N), dtype=np.int64)
        self.counts_LRE = np.zeros((L, len(KINDS) * M, E), dtype=np.int64)
        self.seen_R = np.zeros(len(KINDS) * M, dtype=np.int64)
        self._n_used, self._n_read = 0, 0  # slots, tokens

    @property
    def fair(self) -> float:
        """K/E, with the slots in use for K."""
        return self._n_used / max(self._n_read * self.trace.n_layers * self.trace.n_experts, 1)

    def add(self, chunk: Chunk) -> None:
        place_T, E = self.place_V[chunk.tokens_T], self.trace.n_experts
        self._n_used, self._n_read = self._n_used + int((chunk.ids_KLT >= 0).sum()), self._n_read + len(chunk)
        self.seen_N += np.bincount(place_T[place_T >= 0], minlength=len(self.seen_N))
        rows_T = None
        if self.kind_V is not None:
            rows_T = self.kind_V[chunk.tokens_T] * len(self.trace.domains) + chunk.domain_T
            self.seen_R += np.bincount(rows_T, minlength=len(self.seen_R))
        for ids_LT in chunk.ids_KLT:
            self.counts_LNE += count(place_T, ids_LT, len(self.id_N), E)
            if rows_T is not None:
                self.counts_LRE += count(rows_T, ids_LT, len(self.seen_R), E)

    def sections(self) -> list[Section]:
        return [self._tokens(), *([self._kinds()] if self.kind_V is not None else [])]

    def _piece(self, place: int) -> str:
        token = int(self.id_N[place])
        pieces = self.trace.pieces
        return shown_piece(pieces[token]) if pieces is not None and token < len(pieces) else f"id {token}"

    def _tokens(self) -> Section:
        trace, fair = self.trace, self.fair
        share_LNE = self.counts_LNE / np.maximum(self.seen_N, 1)[:, None]
        favourites = self._favourites(share_LNE)
        by_layer = self._specialisation(share_LNE)
        rows = tuple(
            (f["layer"], f["expert"], "  ".join(f"{piece} {share:.0%}" for piece, share, _ in f["tokens"]))
            for f in favourites
        )
        plots = (
            Plot(
                "lines", "How often a token's favourite expert reads it", "layer", "%",
                [float(n) for n in range(trace.n_layers)], {"favourite of the token": percent(by_layer)},
                references={"fair share": 100 * fair},
            ),
        )  # fmt: skip
        note = (
            f"N_x,i / N_x of arXiv 2409.02060, {len(self.id_N):,} tokens that occur {_SEEN} times or more; ordered by "
            "the low end of Wilson's interval. The favourite is chosen on the text it is counted on: rare tokens help."
        )
        facts = {
            "fair": fair, "by_layer": np.round(by_layer, 5).tolist(), "n_tokens_counted": len(self.id_N),
            "favourites": [{k: f[k] for k in ("layer", "expert", "tokens")} for f in favourites],
        }  # fmt: skip
        columns = ("layer", "expert", "tokens it reads most (share of the places of each)")
        sentence = _say_tokens(favourites, by_layer, fair)
        return Section("tokens", "Which tokens an expert reads", sentence, columns, rows, plots, note, facts)

    def _favourites(self, share_LNE: NDArray[np.float64]) -> list[dict[str, Any]]:
        """Of the layers shown and the experts most bound to a token: (piece, share, places), the surest first."""
        found = []
        for layer in shown_layers(self.trace.n_layers):
            low_NE = _wilson_low(share_LNE[layer], self.seen_N[:, None])
            tops = low_NE.max(0) if len(low_NE) else np.zeros(self.trace.n_experts)
            for expert in sorted(np.argsort(-tops, kind="stable")[:_EXPERTS].tolist()):
                order = np.argsort(-low_NE[:, expert], kind="stable")[:_FAVOURITES]
                tokens = [(self._piece(n), float(share_LNE[layer, n, expert]), int(self.seen_N[n])) for n in order]
                found.append({"layer": layer, "expert": expert, "tokens": tokens, "surest": float(tops[expert])})
        return found

    def _specialisation(self, share_LNE: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ_x N_x max_i N_{x,i} / N_x over Σ_x N_x, by layer [L]."""
        if not len(self.id_N):
            return np.zeros(len(share_LNE))
        return np.asarray((share_LNE.max(-1) * self.seen_N).sum(-1) / self.seen_N.sum())

    def _named_kinds(self) -> list[tuple[str, NDArray[np.int64]]]:
        """A name and the rows that are put together for it: kinds, words by domain, keywords in code and elsewhere."""
        domains, M = self.trace.domains, len(self.trace.domains)
        named = []
        for k, kind in enumerate(KINDS):
            mine = k * M + np.arange(M)
            code = np.array([is_code(d) for d in domains])
            if kind == "Python keywords" and code.any() and not code.all():
                named += [(f"{kind}, in code", mine[code]), (f"{kind}, elsewhere", mine[~code])]
            else:
                named.append((kind, mine))
        words = np.array([KINDS.index(w) for w in WORDS])
        if M > 1:
            named += [(f"letters, {name}", words * M + d) for d, name in enumerate(domains)]
        return [(name, rows) for name, rows in named if self.seen_R[rows].sum() >= _FEW]

    def _kinds(self) -> Section:
        trace, named, fair = self.trace, self._named_kinds(), self.fair
        shares = {
            name: self.counts_LRE[:, rows].sum(1) / max(int(self.seen_R[rows].sum()), 1) for name, rows in named
        }  # fmt: skip
        rows = [
            self._kind_row(name, mine, shares[name][layer], layer) for name, mine in named
            for layer in shown_layers(trace.n_layers)
        ]  # fmt: skip
        plots = tuple(
            Plot(
                "heatmap", f"Layer {layer}: how often each expert reads a kind of token", "expert", "%",
                [str(e) for e in range(trace.n_experts)], {name: percent(shares[name][layer]) for name, _ in named},
            ) for layer in shown_layers(trace.n_layers, most=3) if named
        )  # fmt: skip
        note = (
            "The kind is read off the token alone; 'letters' are the three kinds of words by domain. The share is of "
            f"the tokens of that kind that the expert reads; {fair:.1%} is fair. Kinds with fewer than {_FEW} tokens "
            "are left out."
        )
        facts = {"fair": fair, "by_kind": {
            n: {"tokens": int(self.seen_R[r].sum()), "share": np.round(shares[n], 5).tolist()} for n, r in named
        }}  # fmt: skip
        columns = ("kind", "tokens", "of all %", "layer", "favourite expert", "reads %", "least %")
        title = "Which kinds of token an expert reads"
        return Section(
            "kinds", title, _say_kinds(shares, fair), columns, tuple(rows), plots, note, facts
        )  # fmt: skip

    def _kind_row(
        self, name: str, rows: NDArray[np.int64], share_E: NDArray[np.float64], layer: int
    ) -> tuple[Cell, ...]:
        n, top = int(self.seen_R[rows].sum()), int(share_E.argmax())
        part = percent(n / max(int(self.seen_R.sum()), 1))
        return (name, n, part, layer, top, percent(share_E[top]), percent(share_E.min()))


def _wilson_low(share: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """The low end of Wilson's 95 % interval of a share of n."""
    z2, n = 1.96**2, np.maximum(n, 1)
    return np.asarray((share + z2 / (2 * n) - np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))) / (1 + z2 / n))


def _say_tokens(favourites: list[dict[str, Any]], by_layer: NDArray[np.float64], fair: float) -> str:
    known = [f for f in favourites if f["tokens"]]
    if not known:
        return f"No token occurs {_SEEN} times, too few to say which tokens an expert reads."
    best, layer = max(known, key=lambda f: float(f["surest"])), int(by_layer.argmax())
    piece, share, n = best["tokens"][0]
    return (
        f"The favourite expert of a token is among those that read it {by_layer.mean():.0%} of the time ({fair:.0%} "
        f"would be fair), most in layer {layer} ({by_layer[layer]:.0%}); the clearest is {piece!r}, read by expert "
        f"{best['expert']} of layer {best['layer']} in {share:.0%} of its {n:,} places."
    )


def _say_kinds(shares: dict[str, NDArray[np.float64]], fair: float) -> str:
    if not shares:
        return "No kind of token occurs often enough to say which experts read it."
    mean = {name: float(share_LE.max(-1).mean()) for name, share_LE in shares.items()}
    order = sorted(mean, key=lambda name: -mean[name])
    said = ", ".join(f"{name} ({mean[name]:.0%})" for name in order[:3])
    return (
        f"Over the layers, one expert reads {said}: the kinds that are most bound to one. The least bound are "
        f"{order[-1]} ({mean[order[-1]]:.0%}); {fair:.0%} would be fair."
    )
