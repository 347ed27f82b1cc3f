"""The routing that table 5 is made of: the beginnings of texts of every domain of the data, each read once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from coterie.analysis.trace import Trace, make_trace, open_trace
from coterie.api import LanguageModel
from coterie.errors import CoterieError
from coterie.eval.fingerprint import fingerprint
from coterie.eval.rows import Files
from coterie.eval.text_files import has_texts, read_domains

__all__ = ["record_texts"]

_TOKENS = 16_384  # of a domain
_WINDOW = 1_024  # of a text, BOS included


def record_texts(
    lm: LanguageModel,
    files: Files,
    path: Path,
    *,
    tokens: int = _TOKENS,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Trace | str:
    """Record at most `tokens` tokens of each domain into `path`; or say why there is nothing to record."""
    n_experts = lm.config.num_local_experts
    if n_experts is None:
        return f"{lm.name} is dense: it has no experts to choose"
    if files.folder is None or not has_texts(files):
        return "no *.valid.jsonl file of texts in the data"
    pieces = _pieces(lm, files, tokens)
    experts, weights, ids, documents, domains = [], [], list[int](), list[int](), list[str]()
    done, total = 0, sum(len(piece) for _, piece in pieces)
    for number, (domain, piece) in enumerate(pieces):
        try:
            routed = lm.route(piece)
        except CoterieError as error:  # a router that chooses no experts for a token
            return str(error)
        experts.append(routed.experts.numpy())
        weights.append(routed.weights.numpy())
        ids += piece
        documents += [number] * len(piece)
        domains += [domain] * len(piece)
        done += len(piece)
        progress("table 5", done, total)
    make_trace(
        path, experts_TLK=np.concatenate(experts), weights_TLK=np.concatenate(weights), token_ids=ids,
        n_experts=n_experts, documents=documents, domains=domains, model=lm.name,
        vocab_size=lm.config.vocab_size, fingerprint=fingerprint(lm), is_normalised=lm.config.norm_topk_prob,
    )  # fmt: skip
    return open_trace(path)


def _pieces(lm: LanguageModel, files: Files, tokens: int) -> list[tuple[str, list[int]]]:
    """(domain, ids) of the first `_WINDOW` tokens of each text, until a domain has enough."""
    counts: dict[str, int] = {}
    pieces = []
    window = min(_WINDOW, lm.config.max_position_embeddings)
    for domain, text in read_domains(files):
        room = min(window, tokens - counts.get(domain, 0))
        if room > 1:
            ids = lm.tokenizer.encode(text[: 16 * window], bos=True)[:room]
            counts[domain] = counts.get(domain, 0) + len(ids)
            pieces.append((domain, ids))
    return sorted(pieces, key=lambda piece: piece[0])
