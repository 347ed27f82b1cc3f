"""NTREX: news in several languages side by side (Federmann et al. 2022), translated and measured by chrF and BLEU.

Both are figures of a whole corpus, by `sacrebleu`; their standard errors are the spread of its bootstrap over
sentences. Each direction is a group; the figure over all is the mean of the directions.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from coterie.errors import RequestError, ResourceError
from coterie.eval.rows import text_of
from coterie.eval.settings import parts_of
from coterie.eval.task import Context, Item, Judged, Metric, Row
from coterie.eval.written import Written

__all__ = ["LANGUAGES", "Ntrex"]

LANGUAGES = {"en": "English", "fr": "French", "de": "German", "it": "Italian", "es": "Spanish"}
_PAIRS = ("en-fr", "en-de", "en-it", "en-es", "fr-en", "de-en", "it-en", "es-en")
_DRAWS = 300


class Ntrex(Written):
    """`--set pairs=en-fr,de-it`: the directions; without it, from and to English."""

    name = file = "ntrex"
    metric = "chrf"
    fields = tuple(LANGUAGES)
    settings = (*Written.settings, "pairs")
    protocol = "form 'French phrase:' after 'English phrase: ...', one line; chrF and BLEU of sacrebleu over the corpus"

    def __init__(self, context: Context | None = None):
        super().__init__(context)
        self.pairs = _pairs({} if context is None else context.settings)
        self._texts: dict[int, str] = {}

    def check(self, row: Row, where: str) -> None:
        for name in sorted({language for pair in self.pairs for language in pair.split("-")}):
            text_of(row, name, where)

    def group(self, row: Row) -> str:
        return str(row["pair"])

    def items(self, rows: Sequence[Row], *, shots: int | None, seed: int) -> list[Item]:
        _metrics()  # a library that is missing is said before the model is asked
        return super().items([{**row, "pair": pair} for pair in self.pairs for row in rows], shots=shots, seed=seed)

    def identity(self, row: Row, number: int) -> str:
        return f"{row['pair']}/{row.get('doc', '')}/{row.get('line', number)}/{number}"

    def prompt(self, row: Row) -> str:
        source, target = row["pair"].split("-")
        return f"{LANGUAGES[source]} phrase: {row[source]}\n{LANGUAGES[target]} phrase:"

    def target(self, row: Row) -> str:
        return str(row[row["pair"].split("-")[1]])

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {}

    def judge(self, item: Item, answers: list[list[str]]) -> dict[str, float]:
        """The first text is kept for the figure of the corpus."""
        self._texts[id(item)] = answers[0][0].strip()
        return {"characters": float(len(answers[0][0].strip()))}

    def metrics(self, judged: list[Judged]) -> list[Metric]:
        groups: dict[str, list[Item]] = {}
        for item, _ in judged:
            groups.setdefault(item.group, []).append(item)
        found = [
            _corpus(name, kind, [self._texts[id(i)] for i in items], [self.target(i.row) for i in items], pair)
            for pair, items in groups.items()
            for name, kind in zip(("chrf", "bleu"), _metrics(), strict=True)
        ]
        means = [_mean(name, [metric for metric in found if metric.name == name]) for name in ("chrf", "bleu")]
        return means + found


def _pairs(settings: Any) -> tuple[str, ...]:
    known = [f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES if a != b]
    asked = tuple(dict.fromkeys(parts_of(settings, "pairs"))) or _PAIRS
    for pair in asked:
        if pair not in known:
            raise RequestError(f"--set pairs={pair[:60]}: expected two of {', '.join(LANGUAGES)}, as in en-fr")
    return asked


def _metrics() -> tuple[Any, Any]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise ResourceError("chrF is measured by sacrebleu, which is not here: pip install sacrebleu") from None
    return CHRF(), BLEU(effective_order=False)


def _corpus(name: str, metric: Any, texts: list[str], right: list[str], pair: str) -> Metric:
    n, value = len(texts), float(metric.corpus_score(texts, [right]).score)
    return Metric(name, value, _error(metric, texts, right) if n > 1 else None, n, None, pair)


def _error(metric: Any, texts: list[str], right: list[str]) -> float:
    """The spread over corpora drawn from the sentences; sacrebleu's own interval fails where some of them score 0."""
    from sacrebleu.significance import _bootstrap_resample

    _, draws = _bootstrap_resample(metric._extract_corpus_statistics(texts, [right]), metric, _DRAWS)
    return statistics.stdev(float(draw.score) for draw in draws)


def _mean(name: str, metrics: list[Metric]) -> Metric:
    """Directions are different questions: their errors add up as those of independent figures."""
    n, errors = len(metrics), [metric.stderr for metric in metrics]
    known = [error for error in errors if error is not None]
    stderr = math.sqrt(math.fsum(e * e for e in known)) / n if len(known) == n else None
    return Metric(name, math.fsum(m.value for m in metrics) / n, stderr, sum(m.n for m in metrics))
