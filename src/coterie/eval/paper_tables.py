"""What the Mixtral paper reports (arXiv 2401.04088, tables 2 to 4 and the table on bias), to print beside our own.

Per cent, but for MT-Bench (1 to 10) and BOLD (mean sentiment, -1 to 1, and its standard deviation). Table 5 is in
`analysis/paper_routing.py`. The same benchmark has other shots in table 3 than in table 2.
"""

from dataclasses import dataclass

__all__ = ["BBQ", "BOLD", "BOLD_PROMPTS", "LANGUAGES", "TABLE_2", "TABLE_3", "TABLE_4", "Bench", "Sentiment"]


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark of the paper: our task for it, the paper's protocol, and its figures by model."""

    name: str
    task: str
    protocol: str
    published: dict[str, float]
    shots: int | None = None  # None: what our task does by itself
    samples: int | None = None
    metric: str = ""  # "": the task's main one
    scale: float = 100.0  # of our figure, to have the paper's unit
    needs: str = ""  # a setting without which it cannot be run


_MODELS_2 = ("Llama 2 7B", "Llama 2 13B", "Llama 1 33B", "Llama 2 70B", "Mistral 7B", "Mixtral 8x7B")
_MODELS_3 = ("Llama 2 70B", "GPT-3.5", "Mixtral 8x7B")
_MODELS_4 = ("Llama 1 33B", "Llama 2 70B", "Mixtral 8x7B")


def _bench(
    models: tuple[str, ...],
    name: str,
    task: str,
    protocol: str,
    values: tuple[float, ...],
    *,
    shots: int | None = None,
    samples: int | None = None,
    scale: float = 100.0,
    needs: str = "",
) -> Bench:
    published = dict(zip(models, values, strict=True))
    return Bench(name, task, protocol, published, shots, samples, scale=scale, needs=needs)


_ZERO = "0 shots"
TABLE_2 = (
    _bench(_MODELS_2, "MMLU", "mmlu", "5 shots", (44.4, 55.6, 56.8, 69.9, 62.5, 70.6), shots=5),
    _bench(_MODELS_2, "HellaSwag", "hellaswag", _ZERO, (77.1, 80.7, 83.7, 85.4, 81.0, 84.4), shots=0),
    _bench(_MODELS_2, "WinoGrande", "winogrande", _ZERO, (69.5, 72.9, 76.2, 80.4, 74.2, 77.2), shots=0),
    _bench(_MODELS_2, "PIQA", "piqa", _ZERO, (77.9, 80.8, 82.2, 82.6, 82.2, 83.6), shots=0),
    _bench(_MODELS_2, "ARC easy", "arc_easy", _ZERO, (68.7, 75.2, 79.6, 79.9, 80.5, 83.1), shots=0),
    _bench(_MODELS_2, "ARC challenge", "arc_challenge", _ZERO, (43.2, 48.8, 54.4, 56.5, 54.9, 59.7), shots=0),
    _bench(_MODELS_2, "Natural Questions", "nq_open", "5 shots", (17.5, 16.7, 24.1, 25.4, 23.2, 30.6), shots=5),
    _bench(_MODELS_2, "TriviaQA", "triviaqa", "5 shots", (56.6, 64.0, 68.5, 73.0, 62.5, 71.5), shots=5),
    _bench(_MODELS_2, "HumanEval", "humaneval", _ZERO, (11.6, 18.9, 25.0, 29.3, 26.2, 40.2)),
    _bench(_MODELS_2, "MBPP", "mbpp", "3 shots, hand-verified subset", (26.1, 35.4, 40.9, 49.8, 50.2, 60.7)),
    _bench(_MODELS_2, "MATH", "math", "4 shots, maj@4", (3.9, 6.0, 8.4, 13.8, 12.7, 28.4), shots=4, samples=4),
    _bench(_MODELS_2, "GSM8K", "gsm8k", "8 shots, maj@8", (16.0, 34.3, 44.1, 69.6, 50.0, 74.4), shots=8, samples=8),
)

TABLE_3 = (
    _bench(_MODELS_3, "MMLU", "mmlu", "5 shots", (69.9, 70.0, 70.6), shots=5),
    _bench(_MODELS_3, "HellaSwag", "hellaswag", "10 shots", (87.1, 85.5, 86.7), shots=10),
    _bench(_MODELS_3, "ARC challenge", "arc_challenge", "25 shots", (85.1, 85.2, 85.8), shots=25),
    _bench(_MODELS_3, "WinoGrande", "winogrande", "5 shots", (83.2, 81.6, 81.2), shots=5),
    _bench(_MODELS_3, "MBPP", "mbpp", "pass@1", (49.8, 52.2, 60.7)),
    _bench(_MODELS_3, "GSM8K", "gsm8k", "5 shots", (53.6, 57.1, 58.4), shots=5),
    _bench(
        _MODELS_3,
        "MT-Bench",
        "mt_bench",
        "instruct models, judged by GPT-4",
        (6.86, 8.32, 8.30),
        scale=1.0,
        needs="judge",
    ),
)

LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}
_ROWS_4 = (("ARC challenge", "arc_challenge"), ("HellaSwag", "hellaswag"), ("MMLU", "mmlu"))
_VALUES_4 = {  # by language: of each model, ARC challenge, HellaSwag and MMLU
    "fr": ((39.3, 68.1, 49.9), (49.9, 72.5, 64.3), (58.2, 77.4, 70.9)),
    "de": ((41.1, 63.3, 48.7), (47.3, 68.7, 64.2), (54.3, 73.0, 71.5)),
    "es": ((45.7, 69.8, 52.3), (50.5, 74.5, 66.0), (55.4, 77.6, 72.5)),
    "it": ((42.9, 65.4, 49.0), (49.4, 70.9, 65.1), (52.8, 75.1, 70.9)),
}
TABLE_4 = tuple(
    _bench(
        _MODELS_4,
        f"{name}, {LANGUAGES[language]}",
        f"{task}.{language}",
        "translated; shots not reported",
        tuple(values[place] for values in by_model),
    )
    for language, by_model in _VALUES_4.items()
    for place, (name, task) in enumerate(_ROWS_4)
)

BBQ = Bench("BBQ accuracy", "bbq", "accuracy", {"Llama 2 70B": 51.5, "Mixtral 8x7B": 56.0}, metric="acc")


@dataclass(frozen=True, slots=True)
class Sentiment:
    """Of the texts written after the prompts of one domain: the mean and the standard deviation over its groups."""

    mean: float
    deviation: float


BOLD_PROMPTS = 23_679
BOLD = {  # by domain: Llama 2 70B, Mixtral 8x7B
    "gender": (Sentiment(0.293, 0.073), Sentiment(0.323, 0.045)),
    "profession": (Sentiment(0.218, 0.073), Sentiment(0.243, 0.087)),
    "religious_ideology": (Sentiment(0.188, 0.133), Sentiment(0.144, 0.089)),
    "political_ideology": (Sentiment(0.149, 0.140), Sentiment(0.186, 0.146)),
    "race": (Sentiment(0.232, 0.049), Sentiment(0.232, 0.052)),
}
