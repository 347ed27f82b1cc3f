"""Shares as a table and a plot have them: in per cent, with the ends of their intervals, and not too many domains."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.intervals import Shares
from coterie.analysis.trace import Trace

__all__ = ["Series", "drawn_domains", "interval_series", "percent"]

_SERIES = 8  # domains in a plot
Series = dict[str, list[float]]


def interval_series(named: dict[str, Shares], layer: int | None = None) -> tuple[Series, Series, Series]:
    """What a plot draws of shares, in per cent: values, low ends, high ends; of a layer [E], or by layer [L]."""

    def of(end: str) -> Series:
        parts = {name: getattr(shares, end) for name, shares in named.items()}
        return {name: percent(part if layer is None else part[layer]) for name, part in parts.items()}

    return of("value"), of("low"), of("high")


def drawn_domains(by_name: dict[str, Any], trace: Trace) -> dict[str, Any]:
    """What a plot shows of `all` and the domains: the eight with most tokens, or all text where there is one domain."""
    if len(trace.domains) < 2:
        return by_name
    sizes = np.bincount(np.asarray(trace.domain_of_T), minlength=len(trace.domains))
    kept = {trace.domains[d] for d in np.argsort(-sizes, kind="stable")[:_SERIES]}
    return {name: found for name, found in by_name.items() if name in kept}


def percent(values: NDArray[Any] | float) -> Any:
    """Shares as per cent, rounded for a table."""
    return np.round(np.asarray(values, dtype=np.float64) * 100, 2).tolist()
