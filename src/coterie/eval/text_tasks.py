"""The task `perplexity`: bits per byte and perplexity of texts, over all, by domain, and by how much context there was.

Two measurements. Every token of every text is scored once in windows of the whole context, which gives the figures by
domain. Then a sample of blocks is read again after shorter contexts, always the same tokens (`context_curve.py`).
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from coterie.analysis.section import Cell, Plot, Section
from coterie.errors import RequestError
from coterie.eval.context_curve import Curve, context_lengths, curve, join
from coterie.eval.fingerprint import fingerprint
from coterie.eval.kept import Kept
from coterie.eval.settings import parts_of, whole, wholes
from coterie.eval.task import Context, Metric, TaskResult, Work
from coterie.eval.text_files import has_texts, read_domains
from coterie.eval.text_score import Text, TextScore, bits_per_byte, by_domain, encode, perplexity, score_texts
from coterie.eval.windows import Reader, Seen, Window, check_context, prefix_id
from coterie.model import Output

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["Perplexity"]


class Perplexity(Work):
    """`--set context=N stride=N` for the windows, `lengths=N,N,... blocks=N` for the curve, `files=FILE,...`."""

    name = "perplexity"
    metric = "bits_per_byte"
    protocol = (
        "every token of every text once, each text on its own after BOS, in windows of the context that overlap by "
        "half; intervals by bootstrap over texts; by context length: the same blocks of 64 tokens after each length"
    )
    settings = ("context", "stride", "lengths", "blocks", "files")

    def __init__(self, context: Context | None = None, *, file: str = ""):
        """`file`: a text of its own, in place of the data folder's."""
        super().__init__(context)
        self.file = file

    def is_there(self, context: Context) -> bool:
        return bool(self.file) or has_texts(context.files)

    def run(self, lm: "LanguageModel", context: Context) -> TaskResult:
        limit = lm.config.max_position_embeddings
        options = context.settings
        window = check_context(whole(options, "context", limit, least=2, most=limit), limit)
        stride = whole(options, "stride", max(1, window // 2), least=1, most=window)
        lengths = wholes(options, "lengths", context_lengths(window), least=2, most=limit)
        n_blocks = whole(options, "blocks", 32, least=0, most=100_000)
        if context.shots:
            raise RequestError("perplexity takes no --shots: a text is scored as it is")
        names = parts_of(options, "files") or ([self.file] if self.file else [])
        pairs = read_domains(context.files, names, limit=context.limit)
        texts = encode(lm.tokenizer, pairs, ", ".join(names) or "the data folder")
        reader, prefix = Reader(lm.model), prefix_id(lm.config)
        with Kept(context.run_dir, self.name, fingerprint(lm)) as kept:
            scores = score_texts(
                reader, texts, context=window, stride=stride, prefix=prefix, kept=kept,
                progress=partial(context.progress, "perplexity"), seen=recording(context.recorder, texts),
            )  # fmt: skip
            curves = _curves(reader, texts, lengths, n_blocks, prefix, context, kept)
        return _result(scores, curves, texts, window, stride)


def recording(recorder: Any, texts: Sequence[Text]) -> Seen | None:
    """What hands the scored rows of windows to a recorder of routing, so that it gets each token of a text once."""
    if recorder is None:
        return None

    def seen(window: Window, output: Output) -> None:
        position = len(window.ids) - len(window.targets)
        recorder.add(
            window.ids[position:], output, texts[window.text].domain, position=position, continues=window.first > 0
        )

    return seen


def _curves(
    reader: Reader,
    texts: Sequence[Text],
    lengths: Sequence[int],
    n_blocks: int,
    prefix: int,
    context: Context,
    kept: Kept,
) -> list[Curve]:
    """One for each domain that has texts long enough, and one over those with all lengths where they are several."""
    groups: dict[str, list[Text]] = {}
    for text in texts:
        groups.setdefault(text.domain, []).append(text)
    if not n_blocks or len(lengths) < 2:
        return []
    found = []
    for number, (domain, group) in enumerate(groups.items(), 1):
        report = partial(context.progress, f"context length, {domain} ({number} of {len(groups)})")
        found.append(
            curve(reader, group, domain, lengths=lengths, n_blocks=n_blocks, prefix=prefix, progress=report, kept=kept)
        )
    curves = [c for c in found if c is not None]
    whole_ones = [c for c in curves if len(c.lengths) == len(lengths)]
    return [join(whole_ones), *curves] if len(whole_ones) > 1 else curves


def _result(
    scores: list[TextScore], curves: list[Curve], texts: Sequence[Text], window: int, stride: int
) -> TaskResult:
    groups = {"": scores, **by_domain(scores)}
    if len(groups) == 2:
        groups.pop(next(name for name in groups if name))
    metrics = []
    for group, members in groups.items():
        for name, measure in (("bits_per_byte", bits_per_byte), ("perplexity", perplexity)):
            found = measure(members)
            metrics.append(Metric(name, found.value, found.stderr, len(members), None, group))
    for c in curves:
        n_texts = len({block.text for block in c.blocks})
        for number, length in enumerate(c.lengths):
            found = c.perplexity(number)
            metrics.append(Metric(f"perplexity@{length}", found.value, found.stderr, n_texts, None, c.domain))
    sections = [_domain_section(groups, window, stride)]
    if curves:
        sections.append(_length_section(curves))
    n_tokens = sum(len(text.ids) for text in texts)
    return TaskResult(metrics, sections, _notes(texts, curves, window), len(texts), n_tokens)


def _notes(texts: Sequence[Text], curves: Sequence[Curve], window: int) -> list[str]:
    notes = []
    n_short = sum(len(text.ids) < window for text in texts)
    if n_short:
        notes.append(f"{n_short} of {len(texts)} texts are shorter than the window of {window} tokens: one window each")
    if not curves:
        notes.append("no figure by context length: no text is as long as two of the lengths, or it was not asked for")
    longest = max((c.lengths[-1] for c in curves), default=0)
    for c in curves:
        if c.lengths[-1] < longest:
            notes.append(f"{c.domain}: no text has {longest} tokens, so its curve ends at {c.lengths[-1]}")
    return notes


def _domain_section(groups: dict[str, list[TextScore]], window: int, stride: int) -> Section:
    rows: list[tuple[Cell, ...]] = []
    names, values, low, high = [], [], [], []
    for group, members in groups.items():
        bits, ppl = bits_per_byte(members), perplexity(members)
        n_tokens, n_bytes = sum(sum(s.tokens) for s in members), sum(s.n_bytes for s in members)
        rows.append((group or "all", bits.value, bits.low, bits.high, ppl.value, len(members), n_tokens, n_bytes))
        names.append(group or "all")
        values.append(bits.value)
        low.append(bits.value if bits.low is None else bits.low)
        high.append(bits.value if bits.high is None else bits.high)
    bits, ppl = bits_per_byte(groups[""]), perplexity(groups[""])
    plot = Plot(
        "bars", "Bits per byte by domain", "domain", "bits per byte", names, {"bits per byte": values},
        {"bits per byte": low}, {"bits per byte": high},
    )  # fmt: skip
    return Section(
        "perplexity-by-domain",
        "Bits per byte by domain",
        f"A byte of these texts takes {bits.value:.3f} bits (perplexity {ppl.value:.2f} a token).",
        ("domain", "bits per byte", "low", "high", "perplexity", "texts", "tokens", "bytes"),
        tuple(rows),
        (plot,),
        f"windows of {window} tokens, {stride} further each; low and high: 95 % of 1,000 draws of texts",
        {"window": window, "stride": stride, "bits_per_byte": dict(zip(names, values, strict=True))},
    )


def _length_section(curves: Sequence[Curve]) -> Section:
    lengths = max((c.lengths for c in curves), key=len)
    series: dict[str, list[float]] = {}
    low: dict[str, list[float]] = {}
    high: dict[str, list[float]] = {}
    for c in curves:
        name = c.domain or "all"
        found = [c.perplexity(i) for i in range(len(c.lengths))]
        fill = [float("nan")] * (len(lengths) - len(found))
        series[name] = [e.value for e in found] + fill
        if c is curves[0]:
            low[name] = [e.value if e.low is None else e.low for e in found] + fill
            high[name] = [e.value if e.high is None else e.high for e in found] + fill
    rows: list[tuple[Cell, ...]] = [(name, *values) for name, values in series.items()]
    first = curves[0]
    gain = first.gain(0, len(first.lengths) - 1)
    plot = Plot(
        "lines", "Perplexity by context length", "tokens of context", "perplexity", [float(n) for n in lengths],
        series, low, high,
    )  # fmt: skip
    return Section(
        "perplexity-by-context",
        "Perplexity by context length",
        _length_sentence(first, gain.value, gain.low, gain.high),
        ("domain", *(str(n) for n in lengths)),
        tuple(rows),
        (plot,),
        f"the same {first.n_scored} tokens of each block after every length, {len(first.blocks)} blocks; a gain's "
        "interval is that of the difference",
        {"lengths": list(lengths), "perplexity": series, "gain_nats": gain.value, "gain_low": gain.low,
         "gain_high": gain.high},
    )  # fmt: skip


def _length_sentence(c: Curve, gain: float, low: float | None, high: float | None) -> str:
    short, long = c.perplexity(0).value, c.perplexity(len(c.lengths) - 1).value
    if low is not None and high is not None and low <= 0 <= high:
        return (
            f"From {c.lengths[0]} to {c.lengths[-1]} tokens of context perplexity goes from {short:.2f} to {long:.2f}: "
            "no difference that these texts could show."
        )
    verb = "falls" if gain > 0 else "rises"
    return (
        f"On the same tokens perplexity {verb} from {short:.2f} after {c.lengths[0]} tokens of context to {long:.2f} "
        f"after {c.lengths[-1]}."
    )
