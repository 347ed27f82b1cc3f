"""Requests to tokens: what may be asked for, the cache, sampling, and the loop that decodes sequences together."""

from coterie.engine.completion import Completion, Delta, Usage
from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams
from coterie.engine.sampling import TokenLogprob
from coterie.engine.score import Score
from coterie.engine.trace import RoutingTrace

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "Request",
    "RoutingTrace",
    "SamplingParams",
    "Score",
    "TokenLogprob",
    "Usage",
]
