"""Several traces of one model as one: blocks are copied, their documents and domains numbered anew."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coterie.analysis.trace import Trace, open_trace
from coterie.analysis.trace_writer import TraceWriter
from coterie.errors import DataError

__all__ = ["merge_traces"]


def merge_traces(
    paths: Sequence[Path], out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write `out`, documents in the order of `paths`. `DataError` where they are not all of one model and one kind."""
    traces = [open_trace(path) for path in paths]
    if not traces:
        raise DataError("there is no trace to merge; name at least one")
    for other in traces[1:]:
        _check_same(traces[0], other)
    done, total, n_documents = 0, sum(map(len, traces)), 0
    with TraceWriter(out, traces[0].form, traces[0].pieces) as writer:
        for trace in traces:
            numbers = np.array([writer.number_of(name) for name in trace.domains], dtype=np.int64)
            for n in range(trace.n_blocks):
                block, payload = trace.block(n), trace.payload(n)
                spans_S4 = block.spans_S4.copy()
                spans_S4[:, 1] += n_documents
                spans_S4[:, 3] = numbers[spans_S4[:, 3]]
                raw = spans_S4.astype("<u4").tobytes()
                head = block.n_tokens, len(spans_S4), block.flags, block.scale
                writer.add_block(head, raw + payload[len(raw) :])
                done += block.n_tokens
                progress(done, total)
            n_documents += trace.n_documents
            writer.count_documents(n_documents)
    return out


def _check_same(first: Trace, other: Trace) -> None:
    mine, theirs = (replace(t.form, model="") for t in (first, other))
    if mine == theirs:
        return
    if (first.fingerprint, first.n_experts, first.n_layers) != (other.fingerprint, other.n_experts, other.n_layers):
        raise DataError(
            f"{other.path} is a trace of another model ({other.model}, {other.fingerprint[:12]}) than {first.path} "
            f"({first.model}, {first.fingerprint[:12]}): merge traces of one model; 'coterie trace compare' takes two"
        )
    if mine.has_logits != theirs.has_logits or mine.has_guesses != theirs.has_guesses:
        what = "router logits" if mine.has_logits != theirs.has_logits else "guesses"
        raise DataError(f"of {first.path} and {other.path} only one has {what}: record both in the same way")
    raise DataError(f"{other.path} was recorded with another tokenizer or shape than {first.path}: record it again")
