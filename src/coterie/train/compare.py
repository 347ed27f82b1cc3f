"""Routers side by side: the same recipe once per kind of router, and a table and a picture of what came out.

All runs see the same batches and train as many steps from the same seed. What differs is the router, and with it how
many experts a token uses where the kind is defined for a number of its own (Switch: one): the table has a column for
the active parameters. Kinds that look at later tokens are marked: their loss is flattered.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from coterie.checkpoint.folder import open_checkpoint
from coterie.config import ModelConfig
from coterie.errors import ConfigError, RecipeError, nearest
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.sizes import active_parameters, parameters
from coterie.train.chart import Curve, line_chart
from coterie.train.recipe import Recipe

__all__ = ["Row", "as_json", "chart", "markdown", "parse_kinds", "read_log", "recipe_for", "row_of", "smooth"]

_BIAS_RATE = 0.001  # of arXiv 2408.15664, for a kind that is nothing without it
_LAST = 0.05  # share of the steps over which figures of the end are means


def parse_kinds(text: str) -> list[str]:
    """`topk,switch` as a list; `RecipeError` names the nearest for an unknown kind, and a kind that comes twice."""
    kinds = [part.strip() for part in text.split(",") if part.strip()]
    for kind in kinds:
        if kind not in ROUTER_KINDS:
            known = ", ".join(ROUTER_KINDS)
            raise RecipeError(f"--compare: {kind!r} is not a router, expected of {known}{nearest(kind, ROUTER_KINDS)}")
        if kinds.count(kind) > 1:
            raise RecipeError(f"--compare names {kind!r} twice, expected each router once")
    if not kinds:
        raise RecipeError("--compare is empty, expected routers with commas between them: topk,switch,expert_choice")
    return kinds


def recipe_for(plan: Recipe, kind: str) -> Recipe:
    """The recipe with another router, all else as it is but for what only one kind has."""
    config = ModelConfig.from_fields(plan.model | {"router": plan.router}, where="[model]")
    if config.num_local_experts is None:
        raise RecipeError("--compare needs a sparse model: set [model] num_local_experts")
    router = _router(plan.router, kind)
    top_k = plan.model.get("num_experts_per_tok", 2 * plan.init.granularity)  # of an upcycling: two whole copies
    model = plan.model | {"num_experts_per_tok": router.top_k_for(config.num_local_experts, top_k)}
    b = plan.balance
    bias = (b.bias or _BIAS_RATE) if kind == "sigmoid_bias" else 0.0
    balance = replace(b, bias=bias, noisy_load=b.noisy_load if kind == "noisy_topk" else 0.0)
    return replace(plan, model=model, router=router, balance=balance)


def _router(router: RouterConfig, kind: str) -> RouterConfig:
    """Of another kind, with the capacity and jitter of the recipe where the kind takes them."""
    if router.kind == kind:
        return router
    try:
        return RouterConfig(kind=kind, capacity=router.capacity, drop=router.drop, jitter=router.jitter)
    except ConfigError:
        return RouterConfig(kind=kind, jitter=router.jitter)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came out of one kind. Figures of training are means over the last twentieth of the steps."""

    kind: str
    error: str = ""  # why there are no figures
    bits_per_byte: float = math.nan  # mean over the valid files
    loss: float = math.nan
    max_vio: float = math.nan
    entropy: float = math.nan
    idle: float = math.nan
    dropped: float = math.nan
    tokens_per_s: float = math.nan  # median over all steps
    can_decode: bool = True  # False: tokens are routed by what comes after them
    parameters: int = 0
    active: int = 0


def row_of(kind: str, run: Path) -> Row:
    """From what a finished run left in its folder."""
    log, scores = read_log(run), json.loads((run / "scores.json").read_text(encoding="utf-8"))
    config = open_checkpoint(run / "model").config
    last = log[-max(1, round(_LAST * len(log))) :]
    return Row(
        kind=kind,
        bits_per_byte=_mean(score["bits_per_byte"] for score in scores.values()),
        loss=_mean(r["loss"] for r in last),
        max_vio=_mean(r["max_vio"] for r in last),
        entropy=_mean(r["entropy"] for r in last),
        idle=_mean(r["idle"] for r in last),
        dropped=_mean(r["dropped"] for r in last),
        tokens_per_s=statistics.median(r["tokens_per_s"] for r in log),
        can_decode=config.router.can_decode,
        parameters=parameters(config).total,
        active=active_parameters(config).total,
    )


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def markdown(rows: Sequence[Row], steps: int) -> str:
    """The table, best bits per byte first (lowest loss without valid files), with what has to be known to read it."""
    done = [r for r in rows if not r.error]
    done.sort(key=lambda r: r.loss if math.isnan(r.bits_per_byte) else r.bits_per_byte)
    lines = [
        f"Routers after {steps:,} steps on the same batches.",
        "",
        "| router | bits/byte, valid | loss | MaxVio | entropy | idle | dropped | tok/s | decodes "
        "| parameters | active |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|",
        *(_line(r) for r in done),
    ]
    if any(not r.can_decode for r in done):
        lines += [
            "",
            "\\* routes a token by tokens that come after it, so its loss and bits per byte are flattered: what it "
            "knows of them is not there when text is generated.",
        ]
    if len({r.active for r in done}) > 1:
        lines += [
            "",
            "Kinds differ in the experts that a token uses; compare those of about the same active parameters.",
        ]
    lines += [line for r in rows if r.error for line in ("", f"{r.kind} failed: {r.error}")]
    return "\n".join([*lines, ""])


def _line(r: Row) -> str:
    cells = (
        r.kind + ("" if r.can_decode else r" \*"),
        "-" if math.isnan(r.bits_per_byte) else f"{r.bits_per_byte:.4f}", f"{r.loss:.3f}", f"{r.max_vio:.2f}",
        f"{r.entropy:.3f}", f"{r.idle:.1f}", f"{r.dropped:.1%}", f"{r.tokens_per_s:,.0f}",
        "yes" if r.can_decode else "no", f"{r.parameters:,}", f"{r.active:,}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values; what is not known is null."""
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(r).items()} for r in rows]


def chart(logs: dict[str, list[dict[str, Any]]], tokens_per_step: int) -> str:
    """Smoothed training loss over the tokens seen, a curve for each kind, as SVG; the first tenth is cut off above."""
    curves = [
        Curve(kind, [(tokens_per_step * (r["step"] + 1) / 1e6, loss) for r, loss in zip(log, smooth(log), strict=True)])
        for kind, log in logs.items()
    ]
    late = [y for curve in curves for _, y in curve.points[len(curve.points) // 10 :]]
    y_range = (min(late), max(late)) if late and min(late) < max(late) else None
    return line_chart(
        curves, title="Routers on the same batches", x_label="million tokens", y_label="loss (nats per token)",
        y_range=y_range,
    )  # fmt: skip


def smooth(log: Sequence[dict[str, Any]], parts: int = 40) -> list[float]:
    """The loss as a running mean over the last 1 / `parts` of the steps."""
    window = max(1, len(log) // parts)
    losses, sums = [r["loss"] for r in log], [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(losses))]
