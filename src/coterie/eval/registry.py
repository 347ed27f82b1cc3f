"""Which tasks there are: a name for each, imported when it is asked for; a file of one's own is a task as well.

A name is that of the task's file without its ending, where it has one. Groups of names stand for several.
"""

from importlib import import_module
from pathlib import Path

from coterie.errors import RequestError, nearest
from coterie.eval.rows import ENDINGS
from coterie.eval.task import Context, Task, Work

__all__ = ["GROUPS", "TASKS", "is_file", "make", "names_of"]

_TEXTS = (".txt", ".txt.gz")  # files to take the perplexity of
TASKS = {
    "hellaswag": "coterie.eval.choice_tasks:HellaSwag",
    "piqa": "coterie.eval.choice_tasks:Piqa",
    "winogrande": "coterie.eval.choice_tasks:WinoGrande",
    "arc_easy": "coterie.eval.choice_tasks:ArcEasy",
    "arc_challenge": "coterie.eval.choice_tasks:ArcChallenge",
    "openbookqa": "coterie.eval.choice_tasks:OpenBookQA",
    "boolq": "coterie.eval.choice_tasks:BoolQ",
    "commonsenseqa": "coterie.eval.letter_tasks:CommonsenseQA",
    "mmlu": "coterie.eval.letter_tasks:Mmlu",
    "truthfulqa.en": "coterie.eval.truthfulqa:TruthfulQA",
    "truthfulqa.es": "coterie.eval.truthfulqa:TruthfulQAEs",
    "lambada": "coterie.eval.lambada:Lambada",
    "copa": "coterie.eval.choice_tasks:Copa",
    "xcopa_it": "coterie.eval.choice_tasks:XcopaIt",
    "exams": "coterie.eval.choice_tasks:Exams",
    "agieval": "coterie.eval.choice_tasks:AgiEval",
    "basic_skills": "coterie.eval.choice_tasks:BasicSkills",
    "bbq": "coterie.eval.bbq:Bbq",
    "gsm8k": "coterie.eval.generation_tasks:Gsm8k",
    "mgsm": "coterie.eval.generation_tasks:Mgsm",
    "svamp": "coterie.eval.generation_tasks:Svamp",
    "math": "coterie.eval.generation_tasks:Math",
    "bbh": "coterie.eval.bbh:Bbh",
    "triviaqa": "coterie.eval.generation_tasks:TriviaQA",
    "nq_open": "coterie.eval.generation_tasks:NqOpen",
    "squad": "coterie.eval.generation_tasks:Squad",
    "xquad": "coterie.eval.generation_tasks:Xquad",
    "ntrex": "coterie.eval.translation:Ntrex",
    "humaneval": "coterie.eval.code_tasks:HumanEval",
    "mbpp": "coterie.eval.code_tasks:Mbpp",
    "bold": "coterie.eval.bias_tasks:Bold",
    "mt_bench": "coterie.eval.mt_bench:MtBench",
    "perplexity": "coterie.eval.text_tasks:Perplexity",
    "quantized": "coterie.eval.quantized:Quantized",
    "passkey": "coterie.eval.passkey:Passkey",
    "retrieval": "coterie.eval.retrieval:Retrieval",
}
GROUPS = {
    "multiple-choice": (
        "hellaswag",
        "piqa",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "openbookqa",
        "boolq",
        "commonsenseqa",
        "mmlu",
        "truthfulqa.en",
        "truthfulqa.es",
        "lambada",
        "copa",
        "xcopa_it",
        "exams",
        "agieval",
        "basic_skills",
        "bbq",
    ),
    "truthfulqa": ("truthfulqa.en", "truthfulqa.es"),
    "generation": ("gsm8k", "mgsm", "svamp", "math", "bbh", "triviaqa", "nq_open", "squad", "xquad"),
    "code": ("humaneval", "mbpp"),
    "long-context": ("passkey", "retrieval"),
}


def is_file(name: str) -> bool:
    """Whether a TASK is a file rather than a name."""
    return name.endswith((*ENDINGS, *_TEXTS))


def names_of(asked: str, context: Context) -> tuple[list[str], list[str]]:
    """What a TASK of the command line stands for: itself, or the members of a group (`all`: every task) that can run.

    The second list says of each member that cannot, why.
    """
    if asked in TASKS or is_file(asked):
        return [asked], []
    if asked not in GROUPS and asked != "all":
        there = ", ".join(name for name in TASKS if make(name, context).is_there(context)) or "nothing"
        known = (
            "no data folder was named (--data DIR), so what can run is" if context.files.folder is None else "here are"
        )
        raise RequestError(
            f"{asked!r} is no task{nearest(asked, [*TASKS, *GROUPS, 'all'])}; {known} {there}, and a .jsonl file is a "
            "task as well"
        )
    names, left_out = [], []
    for name in TASKS if asked == "all" else GROUPS[asked]:
        task = make(name, context)
        if task.runs_code and not context.run_code:
            left_out.append(f"{name} runs code that the model writes: pass --run-code to allow that")
        elif not task.is_there(context):
            left_out.append(f"{name} needs {_needs(task)}")
        else:
            names.append(name)
    return names, left_out


def make(name: str, context: Context) -> Task | Work:
    """The task of a name, or of a file by the fields of its first row."""
    if name.endswith(_TEXTS):
        from coterie.eval.text_tasks import Perplexity

        return Perplexity(context, file=name)
    if is_file(name):
        from coterie.eval.file_task import task_of_file

        return task_of_file(Path(name), context)
    module, _, kind = TASKS[name].partition(":")
    task: Task | Work = getattr(import_module(module), kind)(context)
    return task


def _needs(task: Task | Work) -> str:
    if task.file:
        return f"{task.file}.jsonl, which is not in the data folder"
    return f"texts in the data folder or a setting ({', '.join(task.settings)})" if task.settings else "more data"
