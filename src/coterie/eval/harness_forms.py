"""What task files for lm-evaluation-harness say that YAML cannot: functions, named there as `!function`.

Reading a task file fetches `documents` from here, and with that `coterie` becomes a model of the harness: so
`lm_eval --model coterie --tasks FOLDER/coterie_hellaswag.yaml` finds it, without a plug-in that the harness has not.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coterie.eval.harness import register

__all__ = ["probability_of_true", "span_scores"]


def __getattr__(name: str) -> Any:
    fetched = {"documents": _documents, "bbq_documents": _bbq_documents}.get(name)
    if fetched is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return fetched


def _documents(rows: Any) -> Any:
    return rows


def _bbq_documents(rows: Any) -> Any:
    from lm_eval.tasks.bbq.utils import process_docs

    return process_docs(rows)


def probability_of_true(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """TruthfulQA's mc2: the share of the choices' probability that falls on true ones (Lin et al. 2021)."""
    p = np.exp(np.array([logprob for logprob, _ in results]))
    is_true = np.array(doc["mc2_targets"]["labels"]) == 1
    return {"acc": float((p / p.sum())[is_true].sum())}


def span_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words with the first reference, as the harness's XQuAD has them (Rajpurkar et al. 2016)."""
    answer, reference = (_words(text) for text in (results[0], doc["answers"][0]))
    is_same = float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    f1 = 2 * common / (len(answer) + len(reference)) if answer and reference else is_same
    return {"exact_match": is_same, "f1": f1}


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()
