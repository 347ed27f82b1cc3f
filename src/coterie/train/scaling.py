"""Scaling laws: the loss to expect of so many parameters and tokens, and when upcycling beats a start from scratch.

Every law is a fit to somebody's runs, thousands of times larger than what a laptop trains, with their text and their
vocabulary: a prediction carries the range in which its law was fitted and says where it leaves it. Losses are nats per
token of the vocabulary of those runs: a smaller vocabulary has shorter tokens, which are easier, so a loss here may be
lower. N counts all parameters that a token uses, embedding and head too.

Not here: Krajewski et al. (arXiv 2402.07871), whose constants could not be checked against the paper.
"""

import math
from dataclasses import dataclass

from coterie.config import ModelConfig
from coterie.sizes import active_parameters

__all__ = [
    "CHINCHILLA",
    "EPOCHS_WITHOUT_LOSS",
    "JOINT_MOE",
    "UPCYCLING",
    "CatchUp",
    "Law",
    "Prediction",
    "chinchilla_loss",
    "chinchilla_optimum",
    "effective_tokens",
    "joint_moe_loss",
    "predict_losses",
    "upcycling_bounds",
]

_E, _A, _ALPHA, _B, _BETA = 1.8172, 482.01, 0.3478, 2085.43, 0.3658  # arXiv 2404.10102
_REUSE = 15.387756  # R*_D of arXiv 2305.16264, appendix A
_MOST_EXPERTS = 32  # of the runs of arXiv 2502.05172
EPOCHS_WITHOUT_LOSS = 4.0  # arXiv 2305.16264, abstract: so often text may come again for next to nothing


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fit and what it was fitted on."""

    name: str
    source: str
    fitted_on: str
    parameters: tuple[float, float]  # active ones, smallest and largest run
    tokens: tuple[float, float]


CHINCHILLA = Law(
    name="Chinchilla, refitted",
    source="arXiv 2404.10102",
    fitted_on="dense models, one epoch, vocabulary of 32,000",
    parameters=(70e6, 16e9),
    tokens=(5e9, 500e9),
)
JOINT_MOE = Law(
    name="Joint MoE",
    source="arXiv 2502.05172",
    fitted_on="dense and Switch models of 1 to 32 experts, one of them per token, vocabulary of 50,257",
    parameters=(79e6, 2.7e9),
    tokens=(0.5e9, 80e9),
)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a law expects; `beyond` says where it was asked for more than it knows, one clause for each way."""

    law: Law
    loss: float  # nats per token
    beyond: tuple[str, ...]


def chinchilla_loss(n_active: float, tokens: float) -> float:
    """1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658: the refit of Hoffmann's third approach (arXiv 2404.10102).

    Example: Chinchilla itself, N = 70e9 and D = 1.4e12, gives 1.97.
    """
    return _E + _A * math.pow(n_active, -_ALPHA) + _B * math.pow(tokens, -_BETA)


def chinchilla_optimum(operations: float) -> tuple[float, float]:
    """(N, D) of least loss among all with 6·N·D = `operations` (arXiv 2203.15556, eq. 4, with the refitted constants).

    N = G·(C/6)^(β/(α+β)), D = (C/6)/N, G = (α·A / (β·B))^(1/(α+β)): some 20 tokens for each parameter.
    """
    g = (_ALPHA * _A / (_BETA * _B)) ** (1 / (_ALPHA + _BETA))
    n = g * (operations / 6) ** (_BETA / (_ALPHA + _BETA))
    return n, operations / 6 / n


def joint_moe_loss(n_active: float, tokens: float, expansion: float) -> float:
    """a·Ê^δ·N^(α + γ ln Ê) + b·Ê^ω·D^(β + ζ ln Ê) + c (arXiv 2502.05172, eq. 6 and table 3).

    `expansion` is E of the paper, where a token uses one expert: here experts / experts per token; 1 is a dense model.
    1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max. Example: E = 8 reduces to
    21.83·N^-0.1676 + 119.9·D^-0.2338 + 1.3637, as table 4 has it.
    """
    start, largest = 2.0732, 290.4521
    e = 1 / (1 / (expansion - 1 + 1 / (1 / start - 1 / largest)) + 1 / largest)
    of_parameters = 35.91 * math.pow(e, -0.2285) * math.pow(n_active, -0.1889 + 0.0098 * math.log(e))
    of_tokens = 35.98 * math.pow(e, 0.5529) * math.pow(tokens, -0.1775 - 0.0259 * math.log(e))
    return of_parameters + of_tokens + 1.3637


def effective_tokens(tokens: float, unique: float) -> float:
    """What `tokens` are worth in text seen once, where only `unique` of them are there (arXiv 2305.16264).

    U + U·R*·(1 - e^(-R/R*)), R the repetitions after the first. Example: 4 epochs of U are worth 3.7 U.
    """
    repeats = max(0.0, tokens / unique - 1)
    return min(tokens, unique * (1 + _REUSE * -math.expm1(-repeats / _REUSE)))


def predict_losses(config: ModelConfig, tokens: float, worth: float | None = None) -> list[Prediction]:
    """What each law expects of the model after `tokens`, `worth` so many fresh ones (None: all are fresh)."""
    n, worth = active_parameters(config).total, tokens if worth is None else worth
    expansion = (config.num_local_experts or 1) / (config.num_experts_per_tok if config.is_sparse else 1)
    dense_only = ("a sparse model is taken for a dense one of its active parameters",) if config.is_sparse else ()
    shape: tuple[str, ...] = ()
    if config.is_sparse and config.num_experts_per_tok > 1:
        shape = (f"{config.num_experts_per_tok} of {config.num_local_experts} is taken for 1 of {expansion:g}",)
    if expansion > _MOST_EXPERTS:
        shape += (_times("experts", expansion, 1, _MOST_EXPERTS),)
    return [
        Prediction(law=CHINCHILLA, loss=chinchilla_loss(n, worth), beyond=_beyond(CHINCHILLA, n, tokens) + dense_only),
        Prediction(
            law=JOINT_MOE, loss=joint_moe_loss(n, worth, expansion), beyond=_beyond(JOINT_MOE, n, tokens) + shape
        ),
    ]


def _beyond(law: Law, n: float, tokens: float) -> tuple[str, ...]:
    asked = (("parameters", n, law.parameters), ("tokens", tokens, law.tokens))
    return tuple(_times(what, value, *known) for what, value, known in asked if not known[0] <= value <= known[1])


def _times(what: str, value: float, least: float, most: float) -> str:
    if value < least:
        return f"{least / value:,.3g} times fewer {what} than its smallest run"
    return f"{value / most:,.3g} times more {what} than its largest run"


@dataclass(frozen=True, kw_only=True)
class CatchUp:
    """When a sparse model from scratch has caught up with an upcycled one, as a share of the dense model's tokens."""

    share: float
    source: str
    measured_on: str


UPCYCLING = (
    CatchUp(
        share=0.25,
        source="arXiv 2409.02060, section 4.1.5",
        measured_on="a decoder of 1 B parameters and 2 T tokens, to 8 experts, top 2: caught up after 500 B tokens",
    ),
    CatchUp(
        share=1.2,
        source="arXiv 2212.05055",
        measured_on="T5 encoder-decoders, 32 experts in half of the layers, expert choice in the encoder",
    ),
)


def upcycling_bounds(tokens: float) -> tuple[float, float]:
    """(below, above): tokens that the dense model must have seen for upcycling to lose, or to win, by both reports.

    A run of `tokens` ends before scratch catches up where the dense model saw more than tokens / share. Example: for a
    run of 100 M tokens upcycling loses below 83 M tokens of the dense model and wins above 400 M; between, they differ.
    """
    shares = [report.share for report in UPCYCLING]
    return tokens / max(shares), tokens / min(shares)
