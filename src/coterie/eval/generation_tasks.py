"""Benchmarks whose answer is written: school maths, closed-book questions, reading. Forms and metrics are lm-eval's.

The file of MATH is not among the data that came with the project; its form is known (`problem`, `solution`), so
`math.jsonl` in the data folder is all it takes.
"""

import re

from coterie.errors import DataError
from coterie.eval.answers import flexible_number, is_number, marked_number, span_scores, stripped, without
from coterie.eval.math_answers import boxed, final_answer, is_equal, normal
from coterie.eval.rows import text_of, texts_of
from coterie.eval.task import Row
from coterie.eval.written import Written

__all__ = ["Gsm8k", "Math", "Mgsm", "NqOpen", "Squad", "Svamp", "TriviaQA", "Xquad"]

_ENDS = ("</s>", "<|im_end|>")
_ASKED_IN = {"fr": ("Question : ", "Réponse :"), "de": ("Frage: ", "Antwort:"), "es": ("Pregunta: ", "Respuesta:")}
_READ_IN = {"de": ("Kontext", "Frage", "Antwort"), "es": ("Contexto", "Pregunta", "Respuesta")}


class _Number(Written):
    """A number is asked for: the last one of the text counts."""

    votes = True
    metric = "flexible_extract"
    words = ("Question: ", "Answer:")
    stop = ("Question:", *_ENDS)

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if not re.search(r"\d", row["answer"]):
            raise DataError(f"{where}: answer is {row['answer'][:60]!r}, expected a number")

    def prompt(self, row: Row) -> str:
        question, answer = self.words
        return f"{question}{row['question']}\n{answer}"

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def found(self, text: str, row: Row) -> str | None:
        return flexible_number(text)

    def is_right(self, found: str | None, row: Row) -> bool:
        return found is not None and stripped(found) == stripped(row["answer"])

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {"flexible_extract": float(self.is_right(self.found(text, row), row))}


class Gsm8k(_Number):
    """School maths in several steps (Cobbe et al. 2021)."""

    name = file = "gsm8k"
    fields = ("question", "solution", "answer")
    shots = 5
    protocol = (
        "form Question: ... Answer:, worked solutions as shots; flexible_extract: the last number of the text is the "
        "right one, strict_match: the one after ####"
    )

    def target(self, row: Row) -> str:
        return str(row["solution"])

    def is_right(self, found: str | None, row: Row) -> bool:
        return is_number(found, row["answer"])

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {**super().score(text, row), "strict_match": float(self.is_right(marked_number(text), row))}


class Svamp(_Number):
    """Word problems of one step (Patel et al. 2021)."""

    name = file = "svamp"
    protocol = "form Question: ... Answer:; the last number of the text is the right one"


class Mgsm(_Number):
    """GSM8K in several languages (Shi et al. 2022)."""

    name = file = "mgsm"
    group_field = "lang"
    protocol = "form Question: ... Answer: in the row's language; the last number of the text is the right one"

    def prompt(self, row: Row) -> str:
        question, answer = _ASKED_IN.get(row["lang"], self.words)
        return f"{question}{row['question']}\n{answer}"

    def stops(self, row: Row) -> tuple[str, ...]:
        return (_ASKED_IN.get(row["lang"], self.words)[0].strip(), *_ENDS)


class TriviaQA(Written):
    """Trivia, closed book (Joshi et al. 2017)."""

    name = file = "triviaqa"
    stop = ("\n", ".", ",")
    protocol = "form Question: ...? Answer:; the text is one of the right answers, without case and punctuation"

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        texts_of(row, "aliases", where, fewest=0)

    def prompt(self, row: Row) -> str:
        return f"Question: {row['question']}?\nAnswer:"

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def score(self, text: str, row: Row) -> dict[str, float]:
        right = {stripped(answer) for answer in (row["answer"], *row["aliases"])}
        return {"exact_match": float(stripped(text.lstrip()) in right)}


class NqOpen(Written):
    """Questions to a search engine, closed book (Kwiatkowski et al. 2019)."""

    name = file = "nq_open"
    fields = ("question",)
    stop = ("\n", ".", ",")
    separator = "\n"
    protocol = "form Q: ...? A:; the text is one of the right answers, without case, punctuation and a first article"
    articles = (re.compile(r"\b(?:The |the |An |A |a |an )"),)

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        texts_of(row, "answers", where)

    def header(self, row: Row) -> str:
        return "Answer these questions:\n\n"

    def prompt(self, row: Row) -> str:
        return f"Q: {row['question']}?\nA:"

    def target(self, row: Row) -> str:
        return str(row["answers"][0])

    def score(self, text: str, row: Row) -> dict[str, float]:
        right = {self._bare(answer) for answer in row["answers"]}
        return {"exact_match": float(self._bare(text.lstrip()) in right)}

    def _bare(self, text: str) -> str:
        return stripped(without(text, self.articles))


class Squad(Written):
    """Spans of a passage (Rajpurkar et al. 2016)."""

    name = file = "squad"
    fields = ("context", "question")
    metric = "f1"
    words = ("Context", "Question", "Answer")
    protocol = (
        "form Context, Question, Answer; exact_match and F1 over words, the best over the right answers, without case, "
        "punctuation and English articles"
    )

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        texts_of(row, "answers", where)

    def _words(self, row: Row) -> tuple[str, str, str]:
        return self.words

    def prompt(self, row: Row) -> str:
        context, question, answer = self._words(row)
        return f"{context}: {row['context']}\n\n{question}: {row['question']}\n\n{answer}:"

    def target(self, row: Row) -> str:
        return str(row["answers"][0])

    def score(self, text: str, row: Row) -> dict[str, float]:
        exact, f1 = span_scores(text, row["answers"])
        return {"f1": f1, "exact_match": exact}


class Xquad(Squad):
    """SQuAD in several languages (Artetxe et al. 2019)."""

    name = file = "xquad"
    group_field = "lang"

    def _words(self, row: Row) -> tuple[str, str, str]:
        return _READ_IN.get(row["lang"], self.words)


class Math(Written):
    """Competition mathematics (Hendrycks et al. 2021)."""

    name = file = "math"
    fields = ("problem", "solution")
    shots = 4
    votes = True
    stop = ("Problem:",)
    max_tokens = 512
    protocol = (
        "form Problem: ... Solution:, worked solutions as shots; the last boxed answer is the right one as text or "
        "number, once both are written in one way"
    )

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        if "answer" in row:
            text_of(row, "answer", where)
        elif boxed(row["solution"]) is None:
            raise DataError(f"{where}: solution has no \\boxed{{}}, expected one around the answer, or a field answer")

    def group(self, row: Row) -> str:
        return str(row.get("subject") or row.get("type") or "")

    def prompt(self, row: Row) -> str:
        return f"Problem:\n{row['problem']}\n\nSolution:"

    def target(self, row: Row) -> str:
        return str(row["solution"])

    def found(self, text: str, row: Row) -> str | None:
        return final_answer(text)

    def is_right(self, found: str | None, row: Row) -> bool:
        right = row.get("answer") or boxed(row["solution"]) or ""
        return is_equal(found, normal(right))

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {"exact_match": float(self.is_right(self.found(text, row), row))}
