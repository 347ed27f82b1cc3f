r"""Answers of the MATH benchmark: what stands in the last `\boxed{}`, written in one way (Lewkowycz et al. 2022).

Two answers are the same if they are the same text after that, or the same number or fraction; algebra that is equal but
written otherwise is not seen.
"""

import re
from fractions import Fraction

__all__ = ["boxed", "final_answer", "is_equal", "normal"]

_FINAL = re.compile(r"(?s)Final Answer: The final answer is(.*?)\. I hope it is correct\.")
_TAKEN_OUT = re.compile(
    r"\\(?:left|right|displaystyle|!|,|;|:|quad|qquad)(?![a-zA-Z])|\\text\{\s*(?:and|or)\s*\}|\^\{?\\circ\}?|\\%|%|\\\$|\$|"
    r"\b(?:square|units?|dollars?|cents?|degrees?|meters?|feet|inches|cm|mm|km|hours?|minutes?|seconds?|points?)\b"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf|overline)\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac([0-9a-zA-Z])([0-9a-zA-Z])")
_SHORT_ROOT = re.compile(r"\\sqrt([0-9a-zA-Z])")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,30})\}\{(-?\d{1,30})\}")
_COMMAS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def boxed(text: str) -> str | None:
    r"""What is inside the last `\boxed{...}` or `\fbox{...}`, braces within it in pairs; None without one."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    first = place = text.index("{", start) + 1
    depth = 1
    while place < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
    return text[first : place - 1] if depth == 0 else None


def final_answer(text: str) -> str | None:
    """What a model gives as its answer: after the words of the shots, else in its last box, else its last number."""
    found = _FINAL.search(text)
    if found:
        return normal(found[1])
    inside = boxed(text)
    if inside is not None:
        return normal(inside)
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return normal(numbers[-1]) if numbers else None


def normal(answer: str) -> str:
    r"""`\text{$1,000$ dollars}` as `1000`, `\dfrac12` as `\frac{1}{2}`, `x = 5` as `5`."""
    answer = answer.split("=")[-1] if answer.count("=") == 1 else answer
    answer = answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    answer = _TAKEN_OUT.sub("", answer)
    answer = _TAKEN_OUT.sub("", _WRAPPED.sub(r"\1", answer))
    answer = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", answer))
    return _COMMAS.sub("", re.sub(r"\s+", "", answer)).rstrip(".")


def is_equal(found: str | None, right: str) -> bool:
    """Whether two normal answers are the same text, or the same number."""
    if found is None:
        return False
    a, b = _number(found), _number(right)
    return found == right or (a is not None and a == b)


def _number(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if match:
        return None if int(match[3]) == 0 else Fraction(int(match[1] + "1") * int(match[2]), int(match[3]))
    if re.fullmatch(r"-?\d{1,30}(\.\d{1,30})?|-?\.\d{1,30}|-?\d{1,30}/0*[1-9]\d{0,30}", text):
        return Fraction(text)
    return None
