"""The forms of tasks in lm-evaluation-harness's template language: prompts, choices, metrics, by file.

They are facts of the harness (0.4.13), for our field names. `fields` go into the task file as they are.
"""

from typing import Any

from coterie.eval.harness_file import Form, Function
from coterie.eval.harness_generation import GENERATION
from coterie.eval.truthfulqa import SHOTS

__all__ = ["FORMS"]


def _mean(*metrics: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


def _choice(text: str, choices: str | list[str], *metrics: str, target: Any = "answer", **more: Any) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": choices,
        "doc_to_target": target,
        "metric_list": _mean(*metrics),
        **more,
    }


_QUESTION = ("question", "choices", "answer")
_CONTEXT = ("context", *_QUESTION)
_LETTERS = "{% for c in choices %}{{'ABCDEFGHIJ'[loop.index0]}}. {{c}}\n{% endfor %}Answer:"
_LOWER = "{{[' ' + choices[0][0]|lower + choices[0][1:], ' ' + choices[1][0]|lower + choices[1][1:]]}}"
_CLEAN = "{{choices | map('trim') | map('replace', '  ', ' ') | list}}"


def _cause(because: str, therefore: str) -> str:
    return "{{(context|trim)[:-1]}} {{'" + because + "' if question == 'cause' else '" + therefore + "'}}"


def _subject(subject: str) -> dict[str, str]:
    name = subject.replace("_", " ")
    return {"description": f"The following are multiple choice questions (with answers) about {name}.\n\n"}


_TRUTH = SHOTS + "Q: {{question}}\nA:"
_MC2 = {"process_results": Function("coterie.eval.harness_forms.probability_of_true")}
_SHORT_TRUTH = "{{'Q: ' + question + '\nA:'}}"


def _truth(file: str, text: str, which: str) -> Form:
    keep = ("question", f"{which}_targets")
    more = {"num_fewshot": 0, **(_MC2 if which == "mc2" else {})}
    return Form(file, keep, _choice(text, "{{" + which + "_targets.choices}}", "acc", target=0, **more))


_EXAMS = {
    "de": "Frage: {{question}}\nAntwort:",
    "es": "Pregunta: {{question}}\nRespuesta:",
    "fr": "Question : {{question}}\nRéponse :",
    "it": "Domanda: {{question}}\nRisposta:",
}
_AGIEVAL = (
    "{{context or ''}}Q: {{question}} Answer Choices: {% for c in choices %}({{'ABCDEFGHIJ'[loop.index0]}}){{c}}"
    "{{'' if loop.last else ' '}}{% endfor %}\nA: Among A through {{'ABCDEFGHIJ'[choices|length - 1]}}, the answer is"
)
_LETTERED = (
    "[{% for c in choices %}{{('(' + 'ABCDEFGHIJ'[loop.index0] + ')' + c).__repr__()}}"
    "{{'' if loop.last else ', '}}{% endfor %}]"
)
_BBQ = "lm_eval.tasks.bbq.utils"
_CATEGORIES = (  # all of them must be declared, NaN where there is no row
    "_Age", "_Disability_status", "_Gender_identity", "_Nationality", "_Physical_appearance", "_Race_ethnicity",
    "_Race_x_gender", "_Race_x_SES", "_Religion", "_SES", "_Sexual_orientation",
)  # fmt: skip


def _aggregated(metric: str, function: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": Function(f"{_BBQ}.{function}"), "higher_is_better": True}


FORMS: dict[str, Form] = {
    "hellaswag": Form(
        "hellaswag", _QUESTION, _choice("{{question | trim | replace('  ', ' ')}}", _CLEAN, "acc", "acc_norm")
    ),
    "piqa": Form("piqa", _QUESTION, _choice("Question: {{question}}\nAnswer:", "choices", "acc", "acc_norm")),
    "winogrande": Form(
        "winogrande",
        _QUESTION,
        _choice(
            "{{answer}}",
            "{{[question.split('_', 1)[0] + choices[0], question.split('_', 1)[0] + choices[1]]}}",
            "acc",
            target="{{question.split('_', 1)[1] | trim}}",
        ),
    ),
    **{
        name: Form(name, _QUESTION, _choice("Question: {{question}}\nAnswer:", "choices", "acc", "acc_norm"))
        for name in ("arc_easy", "arc_challenge")
    },
    "openbookqa": Form("openbookqa", _QUESTION, _choice("question", "choices", "acc", "acc_norm")),
    "boolq": Form("boolq", _CONTEXT, _choice("{{context}}\nQuestion: {{question}}?\nAnswer:", ["no", "yes"], "acc")),
    "commonsenseqa": Form(
        "commonsenseqa", _QUESTION, _choice("Question: {{question.strip()}}\n" + _LETTERS, list("ABCDE"), "acc")
    ),
    "mmlu": Form(
        "mmlu",
        _QUESTION,
        _choice("{{question.strip()}}\n" + _LETTERS, list("ABCD"), "acc", num_fewshot=5),
        by="subject",
        of_part=_subject,
    ),
    "truthfulqa_mc1": _truth("truthfulqa.en", _TRUTH, "mc1"),
    "truthfulqa_mc2": _truth("truthfulqa.en", _TRUTH, "mc2"),
    "truthfulqa_es_mc1": _truth("truthfulqa.es", _SHORT_TRUTH, "mc1"),
    "truthfulqa_es_mc2": _truth("truthfulqa.es", _SHORT_TRUTH, "mc2"),
    "lambada": Form(
        "lambada",
        ("context", "answer"),
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + answer}}",
            "metric_list": [
                *_mean("acc"),
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        },
    ),
    "copa": Form("copa", _CONTEXT, _choice(_cause("because", "therefore"), _LOWER, "acc")),
    "xcopa_it": Form("xcopa_it", _CONTEXT, _choice(_cause("perché", "quindi"), _LOWER.replace("' ' + ", ""), "acc")),
    "exams": Form(
        "exams",
        _QUESTION,
        _choice("", "choices", "acc", "acc_norm"),
        by="lang",
        of_part=lambda lang: {"doc_to_text": _EXAMS.get(lang, "Question: {{question}}\nAnswer:")},
    ),
    "agieval": Form("agieval", _CONTEXT, _choice(_AGIEVAL, _LETTERED, "acc", "acc_norm"), by="task"),
    "basic_skills": Form("basic_skills", _QUESTION, _choice("question", "choices", "acc", "acc_norm"), by="task"),
    "bbq": Form(
        "bbq",
        (
            "example_id",
            "question_polarity",
            "context_condition",
            "category",
            "answer_info",
            "additional_metadata",
            "context",
            "question",
            "ans0",
            "ans1",
            "ans2",
            "label",
        ),
        {
            "output_type": "multiple_choice",
            "process_docs": Function("coterie.eval.harness_forms.bbq_documents"),
            "process_results": Function(f"{_BBQ}.process_results_multiple_choice"),
            "doc_to_text": "{{context}}\n\nQ: {{question}}\nA:",
            "doc_to_target": Function(f"{_BBQ}.doc_to_target"),
            "doc_to_choice": Function(f"{_BBQ}.doc_to_choice"),
            "num_fewshot": 0,
            "metric_list": [
                *_mean("acc"),
                _aggregated("accuracy_amb", "agg_accuracy_amb"),
                _aggregated("accuracy_disamb", "agg_accuracy_disamb"),
                *(
                    _aggregated(f"{kind}_bias_score{category}", f"agg_{kind}_bias_scores")
                    for kind in ("amb", "disamb")
                    for category in ("", *_CATEGORIES)
                ),
            ],
        },
    ),
    **{
        f"text_{domain}": Form(
            f"{domain}.valid",
            ("text",),
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [
                    {"metric": name, "aggregation": aggregation, "higher_is_better": False}
                    for name, aggregation in (
                        ("bits_per_byte", "bits_per_byte"),
                        ("byte_perplexity", "weighted_perplexity"),
                        ("word_perplexity", "weighted_perplexity"),
                    )
                ],
            },
        )
        for domain in ("de", "en", "es", "fr", "it", "python")
    },
    **GENERATION,
}
