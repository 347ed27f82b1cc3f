"""The multiple-choice benchmarks whose form is a sentence or two.

Forms are those of lm-eval where it has the task (all but EXAMS and basic skills), for the fields of our files. A file
that keeps no training rows takes shots, if they are asked for, from among its own.
"""

from coterie.errors import DataError
from coterie.eval.choice import Choice
from coterie.eval.rows import text_of
from coterie.eval.task import Choose, Row

__all__ = [
    "AgiEval", "ArcChallenge", "ArcEasy", "BasicSkills", "BoolQ", "Copa", "Exams", "HellaSwag", "OpenBookQA", "Piqa",
    "WinoGrande", "XcopaIt",
]  # fmt: skip

_NORM = "acc_norm is the likelihood per character"


class HellaSwag(Choice):
    """Which ending follows (Zellers et al. 2019)."""

    name = file = "hellaswag"
    norm = True
    metric = "acc_norm"
    protocol = f"likelihood of each ending after the context; {_NORM}"

    def prompt(self, row: Row) -> str:
        return _one_space(row["question"])

    def choices(self, row: Row) -> list[str]:
        return [_one_space(choice) for choice in row["choices"]]


class Piqa(Choice):
    """Which of two ways reaches the goal (Bisk et al. 2020)."""

    name = file = "piqa"
    norm = True
    n_choices = (2,)
    protocol = f"form Question: ... Answer:, likelihood of both solutions; {_NORM}"

    def prompt(self, row: Row) -> str:
        return f"Question: {row['question']}\nAnswer:"


class ArcEasy(Choice):
    """School science (Clark et al. 2018)."""

    name = file = "arc_easy"
    norm = True
    protocol = f"form Question: ... Answer:, likelihood of each choice; {_NORM}"

    def prompt(self, row: Row) -> str:
        return f"Question: {row['question']}\nAnswer:"


class ArcChallenge(ArcEasy):
    name = file = "arc_challenge"
    metric = "acc_norm"


class OpenBookQA(Choice):
    """Elementary science facts (Mihaylov et al. 2018)."""

    name = file = "openbookqa"
    norm = True
    metric = "acc_norm"
    protocol = f"likelihood of each choice after the bare question; {_NORM}"

    def prompt(self, row: Row) -> str:
        text: str = row["question"]
        return text


class BoolQ(Choice):
    """Yes or no, about a passage (Clark et al. 2019)."""

    name = file = "boolq"
    fields = ("context", "question")
    n_choices = (2,)
    protocol = "passage, then form Question: ...? Answer:, likelihood of no and yes"

    def prompt(self, row: Row) -> str:
        return f"{row['context']}\nQuestion: {row['question']}?\nAnswer:"


class WinoGrande(Choice):
    """Which name fills the gap (Sakaguchi et al. 2020): how likely is what follows the gap, after each."""

    name = file = "winogrande"
    n_choices = (2,)
    protocol = "likelihood of the rest of the sentence after each name in the gap"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        _, gap, after = row["question"].partition("_")
        if not gap or not after.strip():
            raise DataError(f"{where}: question has no gap '_' with words after it, expected a sentence with one")

    def prompt(self, row: Row) -> str:
        before: str = row["question"].partition("_")[0]
        return before

    def asks(self, row: Row, before: str) -> tuple[Choose, ...]:
        rest = f" {row['question'].partition('_')[2].strip()}"
        return tuple(Choose(before + self.prompt(row) + name, (rest,)) for name in row["choices"])

    def shot(self, row: Row) -> str:
        rest = row["question"].partition("_")[2].strip()
        return f"{self.prompt(row)}{row['choices'][row['answer']]} {rest}\n\n"


class Copa(Choice):
    """Cause or effect (Gordon et al. 2012); `question` says which."""

    name = file = "copa"
    fields = ("context", "question")
    n_choices = (2,)
    protocol = "premise with because or therefore, likelihood of both sentences"
    words = {"cause": "because", "effect": "therefore"}  # noqa: RUF012  # a constant
    space = " "  # lm-eval's choices of COPA begin with a space of their own, so two stand before each

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if row["question"] not in self.words:
            raise DataError(f"{where}: question is {row['question']!r:.60}, expected 'cause' or 'effect'")

    def prompt(self, row: Row) -> str:
        return f"{row['context'].strip()[:-1]} {self.words[row['question']]}"

    def choices(self, row: Row) -> list[str]:
        return [f"{self.space}{choice[0].lower()}{choice[1:]}" for choice in row["choices"]]


class XcopaIt(Copa):
    """COPA in Italian (Ponti et al. 2020)."""

    name = file = "xcopa_it"
    protocol = "premise with perché or quindi, likelihood of both sentences"
    words = {"cause": "perché", "effect": "quindi"}  # noqa: RUF012  # a constant
    space = ""


class AgiEval(Choice):
    """Questions of entrance examinations (Zhong et al. 2023), by examination."""

    name = file = "agieval"
    norm = True
    group_field = "task"
    protocol = f"form Q: ... Answer Choices: (A)... A: Among A through E, the answer is; {_NORM}"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if row.get("context") is not None:
            text_of(row, "context", where)

    def prompt(self, row: Row) -> str:
        choices = self.choices(row)
        last = choices[-1][1]
        return (
            f"{row.get('context') or ''}Q: {row['question']} Answer Choices: {' '.join(choices)}\n"
            f"A: Among A through {last}, the answer is"
        )

    def choices(self, row: Row) -> list[str]:
        return [f"({chr(ord('A') + place)}){choice}" for place, choice in enumerate(row["choices"])]


class Exams(Choice):
    """School examinations (Hardalov et al. 2020), by language."""

    name = file = "exams"
    norm = True
    metric = "acc_norm"
    group_field = "lang"
    protocol = f"Question and Answer in the question's language, likelihood of each choice; {_NORM}"
    _WORDS = {  # noqa: RUF012  # a constant
        "de": "Frage: {}\nAntwort:",
        "es": "Pregunta: {}\nRespuesta:",
        "fr": "Question : {}\nRéponse :",
        "it": "Domanda: {}\nRisposta:",
    }

    def prompt(self, row: Row) -> str:
        return self._WORDS.get(row["lang"], "Question: {}\nAnswer:").replace("{}", row["question"])


class BasicSkills(Choice):
    """What small models can do: arithmetic, strings, patterns, code, facts, logic."""

    name = file = "basic_skills"
    norm = True
    group_field = "task"
    protocol = f"likelihood of each choice after the bare question; {_NORM}"

    def prompt(self, row: Row) -> str:
        text: str = row["question"]
        return text


def _one_space(text: str) -> str:
    return text.strip().replace("  ", " ")
