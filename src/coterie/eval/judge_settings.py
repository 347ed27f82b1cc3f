"""The `--set NAME=VALUE` that concern a judge, as numbers within their bounds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coterie.errors import RequestError
from coterie.eval.endpoint import Endpoint
from coterie.eval.judge import Judge
from coterie.eval.settings import one_of, whole

__all__ = ["KEY", "NAMES", "JudgeSettings"]

KEY = "COTERIE_JUDGE_KEY"
NAMES = (
    "judge",
    "judge_model",
    "judge_timeout",
    "judge_retries",
    "judge_concurrency",
    "judge_tokens",
    "max_tokens",
    "against",
    "pairwise",
)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """`judge` is the URL (None: nobody judges), `against` another run's folder; `pairwise` says how battles are made:
    by asking the "judge" about each pair, or by comparing "ratings"."""

    judge: str | None
    judge_model: str | None
    judge_timeout: int
    judge_retries: int
    judge_concurrency: int
    judge_tokens: int
    max_tokens: int
    against: Path | None
    pairwise: str

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> "JudgeSettings":
        """Raises `RequestError` for a value out of its bounds."""
        against = settings.get("against")
        if against and not settings.get("judge"):
            raise RequestError("against needs a judge who compares: add --judge URL")
        number = partial(whole, settings)
        return cls(
            judge=settings.get("judge") or None,
            judge_model=settings.get("judge_model") or None,
            judge_timeout=number("judge_timeout", 60, least=1, most=3600),
            judge_retries=number("judge_retries", 3, least=0, most=20),
            judge_concurrency=number("judge_concurrency", 4, least=1, most=64),
            judge_tokens=number("judge_tokens", 2048, least=16, most=1 << 20),
            max_tokens=number("max_tokens", 1024, least=1, most=1 << 20),
            against=Path(against) if against else None,
            pairwise=one_of(settings, "pairwise", ("judge", "ratings")),
        )

    def open_judge(self) -> Judge | None:
        """The judge, with the key from the environment; None where no URL was given."""
        if self.judge is None:
            return None
        endpoint = Endpoint(
            self.judge,
            self.judge_model,
            key=os.environ.get(KEY),
            timeout=self.judge_timeout,
            retries=self.judge_retries,
            max_tokens=self.judge_tokens,
        )
        return Judge(endpoint, self.judge_concurrency)
