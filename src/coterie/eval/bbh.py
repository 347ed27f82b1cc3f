"""BIG-Bench Hard (Suzgun et al. 2022): subtasks, each with the sentence that stands before its questions."""

import re

from coterie.eval.answers import without
from coterie.eval.bbh_answers import flexible
from coterie.eval.task import Row
from coterie.eval.written import Written

__all__ = ["Bbh"]

_SENTENCES = {  # the first lines of the benchmark's own prompts
    "boolean_expressions": "Evaluate the result of a random Boolean expression.",
    "causal_judgement": "Answer questions about causal attribution.",
    "date_understanding": "Infer the date from context.",
    "disambiguation_qa": "Clarify the meaning of sentences with ambiguous pronouns.",
    "dyck_languages": "Correctly close a Dyck-n word.",
    "formal_fallacies": "Distinguish deductively valid arguments from formal fallacies.",
    "geometric_shapes": "Name geometric shapes from their SVG paths.",
    "hyperbaton": "Order adjectives correctly in English sentences.",
    "logical_deduction_five_objects": "A logical deduction task which requires deducing the order of a sequence "
    "of objects.",
    "logical_deduction_seven_objects": "A logical deduction task which requires deducing the order of a sequence "
    "of objects.",
    "logical_deduction_three_objects": "A logical deduction task which requires deducing the order of a sequence "
    "of objects.",
    "movie_recommendation": "Recommend movies similar to the given list of movies.",
    "multistep_arithmetic_two": "Solve multi-step arithmetic problems.",
    "navigate": "Given a series of navigation instructions, determine whether one would end up back at the "
    "starting point.",
    "object_counting": "Questions that involve enumerating objects and asking the model to count them.",
    "penguins_in_a_table": "Answer questions about a table of penguins and their attributes.",
    "reasoning_about_colored_objects": "Answer extremely simple questions about the colors of objects on a surface.",
    "ruin_names": "Select the humorous edit that 'ruins' the input movie or musical artist name.",
    "salient_translation_error_detection": "Detect the type of error in an English translation of a German "
    "source sentence.",
    "snarks": "Determine which of two sentences is sarcastic.",
    "sports_understanding": "Determine whether an artificially constructed sentence relating to sports is "
    "plausible or not.",
    "temporal_sequences": "Task description: Answer questions about which times certain events could have occurred.",
    "tracking_shuffled_objects_five_objects": "A task requiring determining the final positions of a set of "
    "objects given their initial positions and a description of a sequence of swaps.",
    "tracking_shuffled_objects_seven_objects": "A task requiring determining the final positions of a set of "
    "objects given their initial positions and a description of a sequence of swaps.",
    "tracking_shuffled_objects_three_objects": "A task requiring determining the final positions of a set of "
    "objects given their initial positions and a description of a sequence of swaps.",
    "web_of_lies": "Evaluate a random boolean function expressed as a word problem.",
    "word_sorting": "Sort a list of words.",
}
_NOISE = tuple(re.compile(pattern) for pattern in (r"\.$", ",", "\n", r"\\", '"'))


class Bbh(Written):
    """The whole text is the answer, without what `_NOISE` and spaces around it take away."""

    name = file = "bbh"
    group_field = "task"
    stop = ("</s>", "Q:", "<|im_end|>")
    votes = True
    protocol = (
        "the subtask's sentence, then form Q: ... A:; the whole text is the right answer, without case, commas, "
        "quotes, a last full stop and spaces around it; flexible_extract: the first thing in the form of an answer"
    )

    def header(self, row: Row) -> str:
        sentence = _SENTENCES.get(row["task"])
        return f"{sentence}\n\n" if sentence else ""

    def prompt(self, row: Row) -> str:
        return f"Q: {row['question']}\nA:"

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def found(self, text: str, row: Row) -> str | None:
        return flexible(text, row["task"], row["question"])

    def is_right(self, found: str | None, row: Row) -> bool:
        return found is not None and _bare(found) == _bare(row["answer"])

    def score(self, text: str, row: Row) -> dict[str, float]:
        return {
            "exact_match": float(self.is_right(text.strip(), row)),
            "flexible_extract": float(self.is_right(self.found(text, row), row)),
        }


def _bare(text: str) -> str:
    return without(text.strip(), _NOISE).lower()
