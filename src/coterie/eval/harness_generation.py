"""Tasks whose answers are written, in lm-evaluation-harness: its own files included, with our rows put in their place.

No shots by default: our files have no rows for them, so those that are asked for come from among the rows themselves.
SVAMP, which the harness does not have, is asked as MGSM is.
"""

from collections.abc import Mapping
from typing import Any

from coterie.eval.harness_file import Form, Function

__all__ = ["GENERATION"]

Row = Mapping[str, Any]
_OURS = {  # what the included files say of the data they would download
    "dataset_name": None,
    "training_split": None,
    "validation_split": None,
    "fewshot_split": None,
    "num_fewshot": None,
}


def _form(file: str, keep: tuple[str, ...], include: str, **more: Any) -> Form:
    fields = {**_OURS, "output_type": "generate_until"}
    return Form(file, keep, fields, include=include, metrics=("exact_match",), **more)


def _numbered(row: Row) -> Row:
    """As MGSM's rows are: no worked answer, a number."""
    return {"question": row["question"], "answer": None, "answer_number": str(row["answer"])}


def _reading(file: str, by: str | None) -> Form:
    """As the harness's XQuAD, written out: its own file needs a module that transformers 5 has no more."""
    fields = {
        "output_type": "generate_until",
        "doc_to_text": "Context: {{context}}\n\nQuestion: {{question}}\n\nAnswer:",
        "doc_to_target": "{{answers[0]}}",
        "process_results": Function("coterie.eval.harness_forms.span_scores"),
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0},
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("exact_match", "f1")
        ],
    }
    return Form(file, ("context", "question", "answers"), fields, by=by, of_part=_asked_in)


def _asked_in(language: str) -> Row:
    words = {"de": ("Kontext", "Frage", "Antwort"), "es": ("Contexto", "Pregunta", "Respuesta")}.get(language)
    if words is None:
        return {}
    context, question, answer = words
    return {"doc_to_text": f"{context}: {{{{context}}}}\n\n{question}: {{{{question}}}}\n\n{answer}:"}


GENERATION = {
    "gsm8k": _form(
        "gsm8k",
        ("question", "solution"),
        "gsm8k/gsm8k.yaml",
        adapt=lambda row: {"question": row["question"], "answer": row["solution"]},
    ),
    "mgsm": _form("mgsm", ("question", "answer"), "mgsm/direct/mgsm_direct_{part}.yaml", by="lang", adapt=_numbered),
    "svamp": _form("svamp", ("question", "answer"), "mgsm/direct/mgsm_direct_en.yaml", adapt=_numbered),
    "bbh": _form(
        "bbh",
        ("question", "answer"),
        "bbh/zeroshot/{part}.yaml",
        by="task",
        adapt=lambda row: {"input": row["question"], "target": row["answer"]},
    ),
    "triviaqa": _form(
        "triviaqa",
        ("question", "answer", "aliases"),
        "triviaqa/default.yaml",
        adapt=lambda row: {"question": row["question"], "answer": {"aliases": [row["answer"], *row["aliases"]]}},
    ),
    "nq_open": _form(
        "nq_open",
        ("question", "answers"),
        "nq_open/nq_open.yaml",
        adapt=lambda row: {"question": row["question"], "answer": row["answers"]},
    ),
    "squad": _reading("squad", None),
    "xquad": _reading("xquad", "lang"),
}
