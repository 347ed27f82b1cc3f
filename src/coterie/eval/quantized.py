"""The task `quantized`: a quantised model against its original, or a model against itself in fewer bits.

    coterie eval packed/ quantized --set against=original/
    coterie eval original/ quantized --set quantize=int8,int4,int3

Both read the same windows, so what is compared is the same token after the same text. The first window of each of
evenly spaced texts is taken, every token of it scored.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from coterie.analysis.section import Cell, Plot, Section
from coterie.errors import RequestError
from coterie.eval.divergence import Divergence, compare
from coterie.eval.settings import parts_of, whole
from coterie.eval.task import Context, Metric, TaskResult, Work
from coterie.eval.text_files import evenly, has_texts, read_domains
from coterie.eval.text_score import Text, encode
from coterie.eval.windows import Reader, Window, cut, prefix_id

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["Quantized"]

_COLUMNS = (
    *("type", "domain", "KL", "± 95 %", "median", "99 %", "same first"),
    *("perplexity", "original's", "ratio", "tokens"),
)


class Quantized(Work):
    """`--set against=MODEL` or `quantize=TYPE,...`; `windows=N` of each domain, `context=N` long, `files=FILE,...`."""

    name = "quantized"
    metric = "kl"
    protocol = (
        "KL(original || model) in nats a token, over every token of the first window of each of evenly spaced texts; "
        "intervals by bootstrap over texts"
    )
    settings = ("against", "quantize", "windows", "context", "files")

    def load(self, source: str, device: str, quantize: str | None) -> "LanguageModel":
        """Another model to compare with; a test may put another way in its place."""
        from coterie.api import load

        return load(source, device=device, quantize=quantize)

    def is_there(self, context: Context) -> bool:
        return has_texts(context.files) and ("against" in context.settings or "quantize" in context.settings)

    def run(self, lm: "LanguageModel", context: Context) -> TaskResult:
        against, types = context.settings.get("against", ""), parts_of(context.settings, "quantize")
        if bool(against) == bool(types):
            raise RequestError(
                "quantized compares two models: give the original with --set against=MODEL, or the types to pack the "
                "model into with --set quantize=int8,int4, and not both"
            )
        texts, windows = self._windows(lm, context)
        device = str(lm.model.device)
        found: dict[str, Divergence] = {}
        for name in types or [""]:
            other = self.load(against or lm.name, device, name or None)
            _check_alike(lm, other, [text.ids for text in texts])
            original, model = (other, lm) if against else (lm, other)
            report = partial(context.progress, f"{name or lm.name} against {original.name}")
            found[name] = compare(Reader(original.model), Reader(model.model), windows, report)
            del other, original, model  # before the next is loaded
        domains = {text.domain: [i for i, t in enumerate(texts) if t.domain == text.domain] for text in texts}
        n_tokens = sum(len(window.ids) for window in windows) * 2 * len(found)
        return TaskResult(_metrics(found, domains), [_section(found, domains)], [], len(texts), n_tokens)

    def _windows(self, lm: "LanguageModel", context: Context) -> tuple[list[Text], list[Window]]:
        limit = lm.config.max_position_embeddings
        size = whole(context.settings, "context", min(limit, 2048), least=2, most=limit)
        n_windows = whole(context.settings, "windows", 8, least=1, most=100_000)
        names = parts_of(context.settings, "files")
        pairs = read_domains(context.files, names, limit=context.limit)
        chosen = []
        for domain in dict.fromkeys(domain for domain, _ in pairs):
            chosen += evenly([pair for pair in pairs if pair[0] == domain], n_windows)
        texts = encode(lm.tokenizer, chosen, ", ".join(names) or "the data folder")
        prefix = prefix_id(lm.config)
        return texts, [
            next(cut(text.ids, context=size, stride=size, prefix=prefix, text=number))
            for number, text in enumerate(texts)
        ]


def _check_alike(lm: "LanguageModel", other: "LanguageModel", samples: Sequence[Sequence[int]]) -> None:
    """`RequestError` where an id does not mean the same to both."""
    sizes = lm.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"{lm.name} has a vocabulary of {sizes[0]} and {other.name} one of {sizes[1]}, so their probabilities do "
            "not compare: expected a model and its original"
        )
    used = sorted({i for ids in samples for i in ids})[:20_000]
    if other.has_tokenizer and any(lm.tokenizer.piece(i) != other.tokenizer.piece(i) for i in used):
        raise RequestError(
            f"{lm.name} and {other.name} have other tokens under the same ids, so their probabilities do not compare: "
            "expected a model and its original"
        )


def _metrics(found: dict[str, Divergence], domains: dict[str, list[int]]) -> list[Metric]:
    """Of several types, each over all; of one comparison also by domain."""
    groups = dict(found)
    if len(found) == 1:
        (whole_of,) = found.values()
        groups = {"": whole_of}
        if len(domains) > 1:
            groups |= {domain: whole_of.select(numbers) for domain, numbers in domains.items()}
    return [metric for group, divergence in groups.items() for metric in _figures(divergence, group)]


def _figures(d: Divergence, group: str) -> list[Metric]:
    estimates = {
        "kl": d.mean_kl(), "top1_agreement": d.agreement(), "perplexity": d.perplexity(),
        "perplexity_original": d.perplexity_original(), "perplexity_ratio": d.ratio(),
    }  # fmt: skip
    return [
        *(Metric(name, e.value, e.stderr, len(d.kl), None, group) for name, e in estimates.items()),
        Metric("kl_median", d.quantile(0.5), None, len(d.kl), None, group),
        Metric("kl_p99", d.quantile(0.99), None, len(d.kl), None, group),
    ]


def _section(found: dict[str, Divergence], domains: dict[str, list[int]]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    sentences, kl = [], dict[str, list[float]]()
    for name, d in found.items():
        parts = {"all": d, **{domain: d.select(numbers) for domain, numbers in domains.items()}}
        kl[name or "KL"] = [part.mean_kl().value for part in parts.values()]
        rows += [_row(name, domain, part) for domain, part in parts.items()]
        sentences.append(
            f"{name + ': ' if name else ''}KL {d.mean_kl().value:.4f} nats a token, the same first choice on "
            f"{d.agreement().value:.1%} of tokens, perplexity {d.perplexity().value:.3f} against "
            f"{d.perplexity_original().value:.3f}."
        )
    plot = Plot("bars", "KL from the original, by domain", "domain", "nats a token", ["all", *domains], kl)
    return Section(
        "quantized", "Against the original", " ".join(sentences),
        _COLUMNS,
        tuple(rows), (plot,), "KL(original || model) of next-token probabilities; the ratio is of perplexities",
    )  # fmt: skip


def _row(name: str, domain: str, d: Divergence) -> tuple[Cell, ...]:
    kl = d.mean_kl()
    return (
        name or None, domain, kl.value, None if kl.stderr is None else 1.96 * kl.stderr, d.quantile(0.5),
        d.quantile(0.99), d.agreement().value, d.perplexity().value, d.perplexity_original().value, d.ratio().value,
        len(d.kl),
    )  # fmt: skip
