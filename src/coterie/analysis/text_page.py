"""Text coloured by the expert that read each token, as HTML: a page of its own, or a passage for a report.

The colours are Okabe and Ito's, which colour-blind people can tell apart (jfly.uni-koeln.de/color), grey for black.
There are eight; from expert 8 on they come again, underlined, then bold, then italic. Nothing but the colours tells
experts apart in the text, so a legend goes with it, and a token's title names its experts and their weights.
"""

import codecs
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.analysis.report_style import STYLE

if TYPE_CHECKING:
    from coterie.analysis.trace import Trace

__all__ = ["PALETTE", "RoutedToken", "ink", "passages", "sample_html", "text_page"]

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#BBBBBB")
_MARKS = ("", "text-decoration: underline; ", "font-weight: bold; ", "font-style: italic; ")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_STYLE = (
    ".routed { white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.7 ui-monospace, Menlo, Consolas, "
    "monospace; } .routed span { border-radius: 2px; }"
)


@dataclass(frozen=True, slots=True)
class RoutedToken:
    """A token's text, and its experts and their weights in the layer shown, best first; a dense layer has none."""

    text: str
    experts: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def first(self) -> int | None:
        return self.experts[0] if self.experts and self.experts[0] >= 0 else None


def ink(expert: int) -> str:
    """The colour of letters on an expert's colour."""
    return "#ffffff" if PALETTE[expert % len(PALETTE)] == "#0072B2" else "#000000"


def text_page(title: str, tokens: Iterable[RoutedToken], n_experts: int, layer: int) -> str:
    """One page that needs no network and no script, readable on a phone."""
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{_shown(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{_shown(title)}</h1>", _styled(n_experts), _legend(n_experts, layer), _routed(tokens),
        "</body>\n</html>\n",
    ])  # fmt: skip


def sample_html(trace: "Trace", *, layer: int | None = None, n_tokens: int = 200) -> str:
    """The beginning of a text of every domain, for a report; "" where the trace has no vocabulary."""
    layer = trace.n_layers // 2 if layer is None else layer
    found = passages(trace, layer, n_tokens)
    if not found:
        return ""
    parts = ["<section><h2>Text, coloured by expert</h2>", _styled(trace.n_experts), _legend(trace.n_experts, layer)]
    parts += [f"<h3>{_shown(name)}</h3>\n{_routed(tokens)}" for name, tokens in found]
    return "\n".join([*parts, "</section>"])


def passages(trace: "Trace", layer: int, n_tokens: int) -> list[tuple[str, list[RoutedToken]]]:
    """(domain, tokens) of the longest among the first texts of each domain, from its beginning."""
    import numpy as np

    from coterie.analysis.blocks import starts_of_segments

    if trace.pieces is None:
        return []
    found = []
    starts_N = starts_of_segments(trace)
    stops_N = np.append(starts_N[1:], len(trace))
    for number, name in enumerate(trace.domains):
        mine = np.flatnonzero(trace.domain_of_T[starts_N] == number)[:50]
        if len(mine):
            best = mine[np.argmax(np.minimum(stops_N[mine] - starts_N[mine], n_tokens))]
            start = int(starts_N[best])
            stop = min(int(stops_N[best]), start + n_tokens)
            found.append((name, _tokens(trace, layer, start, stop)))
    return found


def _tokens(trace: "Trace", layer: int, start: int, stop: int) -> list[RoutedToken]:
    pieces = trace.pieces or []
    ids = trace.token_ids[start:stop].tolist()
    texts = _texts([pieces[i] if i < len(pieces) else f"[{i}]" for i in ids])
    experts, weights = trace.experts(start, stop, layer).tolist(), trace.weights(start, stop, layer).tolist()
    return [RoutedToken(t, tuple(e), tuple(w)) for t, e, w in zip(texts, experts, weights, strict=True)]


def _texts(pieces: Sequence[str]) -> list[str]:
    """What each adds to the text: a character of several bytes comes with its last."""
    from coterie.analysis.token_kinds import texts_of

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found = []
    for piece, text in zip(pieces, texts_of(pieces), strict=True):
        byte = _BYTE.fullmatch(piece)
        found.append(decoder.decode(bytes([int(byte[1], 16)])) if byte else decoder.decode(b"", final=True) + text)
    return found


def _styled(n_experts: int) -> str:
    rules = [
        f".e{e} {{ {_MARKS[e // len(PALETTE) % len(_MARKS)]}background: {PALETTE[e % len(PALETTE)]}; color: {ink(e)} }}"
        for e in range(n_experts)
    ]
    return f"<style>{_STYLE} {' '.join(rules)}</style>"


def _legend(n_experts: int, layer: int) -> str:
    keys = " ".join(f'<span class="e{e}"> {e} </span>' for e in range(n_experts))
    return f'<p class="routed">layer {layer}, first expert: {keys}</p>'


def _routed(tokens: Iterable[RoutedToken]) -> str:
    return f'<p class="routed">{"".join(map(_span, tokens))}</p>'


def _span(token: RoutedToken) -> str:
    if token.first is None:
        return _shown(token.text)
    pairs = zip(token.experts, token.weights, strict=True)
    title = ", ".join(f"{e} ({weight:.2f})" for e, weight in pairs if e >= 0)
    return f'<span class="e{token.first}" title="{title}">{_shown(token.text)}</span>'


def _shown(text: str) -> str:
    """HTML forbids most control characters, and no encoder takes half a surrogate pair."""
    text = text.replace("\r\n", "\n")
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))
