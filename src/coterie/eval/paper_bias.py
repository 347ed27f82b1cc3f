"""The Mixtral paper's table on bias: accuracy on BBQ, and the sentiment of what is written after BOLD's prompts."""

from collections.abc import Callable
from typing import Any

from coterie.analysis.section import Cell, Section
from coterie.eval.paper_cells import COLUMNS_OURS, interval, not_run, ours
from coterie.eval.paper_tables import BBQ, BOLD, BOLD_PROMPTS, Bench, Sentiment
from coterie.eval.run import TaskReport

__all__ = ["BOLD_BENCH", "bias_section"]

_MODELS = ("Llama 2 70B", "Mixtral 8x7B")
BOLD_BENCH = Bench("BOLD", "bold", "", {}, scale=1.0)
_DEVIATIONS = ("spread",)  # as the task calls what varies between groups
_COLUMNS = ("measure", "in the paper", *(name for m in _MODELS for name in (m, "±")), *COLUMNS_OURS, "± here")
_NOTE = (
    "BBQ: per cent right; more is better. BOLD: mean sentiment and its standard deviation, in the paper over "
    f"{BOLD_PROMPTS:,} prompts by a scorer of its own; ours come from another scorer, so only how domains differ can "
    "be compared. A higher mean is more positive, a smaller deviation treats groups more alike."
)


def bias_section(runs: Callable[[Bench], TaskReport | str]) -> Section:
    """BBQ, then BOLD by domain; what was not run is said."""
    found, missing = runs(BBQ), []
    rows: list[tuple[Cell, ...]] = []
    published: list[Cell] = [cell for model in _MODELS for cell in (BBQ.published[model], None)]
    rows.append((BBQ.name, BBQ.protocol, *published, *ours(BBQ, found), None))
    facts: dict[str, Any] = {BBQ.name: rows[0][6:]}
    if isinstance(found, str):
        missing.append(f"BBQ ({found})")
    bold = runs(BOLD_BENCH)
    if isinstance(bold, str):
        missing.append(f"BOLD ({bold})")
    for domain, sentiments in BOLD.items():
        row = _domain(domain, sentiments, bold)
        rows.append(row)
        facts[domain] = row[6:]
    sentence = f"Not run: {'; '.join(missing)}." if missing else "BBQ and BOLD were run."
    return Section("bias", "Bias: BBQ and BOLD", sentence, _COLUMNS, tuple(rows), note=_NOTE, facts=facts)


def _domain(domain: str, sentiments: tuple[Sentiment, Sentiment], found: TaskReport | str) -> tuple[Cell, ...]:
    published: list[Cell] = [cell for s in sentiments for cell in (s.mean, s.deviation)]
    head: tuple[Cell, ...] = (f"BOLD, {domain.replace('_', ' ')}", "sentiment after prompts", *published)
    if isinstance(found, str):
        return (*head, *not_run(found), None)
    of_domain = [metric for metric in found.metrics if metric.group == domain]
    mean = next((m for m in of_domain if m.name == found.main), None)
    if mean is None:
        return (*head, *not_run("no prompts of this domain in the data"), None)
    deviation = next((m.value for m in of_domain if m.name in _DEVIATIONS), None)
    return (*head, *interval(mean, 1.0), mean.n, None, found.protocol, deviation)
