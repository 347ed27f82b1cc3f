"""Where in a text the answer to a question of BIG-Bench Hard is, by subtask: what lm-eval's `flexible-extract` finds.

A letter in brackets is looked for first; then the words of a choice, then a letter after a colon. A number that is
written out is read up to 999.
"""

import re
import string
import unicodedata

__all__ = ["flexible"]

_LETTER = re.compile(r"\([A-Z]\)")
_CHOICE = re.compile(r"\([A-Z]\)([^\n^(]*)")
_DIGITS = re.compile(r"[-0-9]+")
_BRACKETS = re.compile(r'(?<= )[" \[(<{}>)\]]+|[" \[(<{}>)\]]+')
_TELLS = (r"no|does not tell the truth|is not telling the truth", r"yes|tells the truth|is telling the truth")
_WORDS = {  # what is looked for, as it is
    "boolean_expressions": re.compile(r"\b(?:True|False)\b"),
    "causal_judgement": re.compile(r"\b(?:Yes|No|yes|no)\b"),
    "formal_fallacies": re.compile(r"\b(?:valid|invalid)\b"),
    "navigate": re.compile(r"\b(?:Yes|No|yes|no)\b"),
}
_NO_OR_YES = {  # what is looked for in lower case, and what it means
    "sports_understanding": (re.compile(r"\b(?:(no|not plausible)|(?:yes|plausible))\b"), ("no", "yes")),
    "web_of_lies": (re.compile(rf"\b(?:({_TELLS[0]})|(?:{_TELLS[1]}))\b"), ("no", "yes")),
}
_NUMBERS = ("multistep_arithmetic_two", "object_counting")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TIES = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: n for n, word in enumerate(f"{_ONES} eighteen nineteen".split())}
_TENS = {w: 10 * n for n, w in enumerate(_TIES.split(), 2)}


def flexible(text: str, task: str, question: str) -> str | None:
    """The first thing in `text` that has the form of an answer to the subtask; None where there is none."""
    if task in _WORDS:
        return _first(_WORDS[task], text)
    if task in _NO_OR_YES:
        pattern, (no, yes) = _NO_OR_YES[task]
        match = pattern.search(text.lower())
        return None if match is None else no if match[1] else yes
    if task in _NUMBERS:
        return _first(_DIGITS, text) or _written_number(text)
    if task == "dyck_languages":
        return _first(_BRACKETS, text)
    if task == "word_sorting":
        return _in_order(text, question.partition("List:")[2].split())
    return _letter(text, question)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[0].strip() or None if match else None


def _letter(text: str, question: str) -> str | None:
    letter = _first(_LETTER, text)
    named = zip(string.ascii_uppercase, _CHOICE.findall(question), strict=False)
    choices = {_plain(choice.strip()): f"({name})" for name, choice in named}
    if letter or not choices:
        return letter
    longest_first = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    match = re.search(longest_first, _plain(text))
    if match and match[0].strip():
        return choices.get(match[0].strip(), match[0].strip())
    after_colon = re.search(rf":\s*([A-{string.ascii_uppercase[len(choices) - 1]}])", text)
    return f"({after_colon[1]})" if after_colon else None


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))


def _in_order(text: str, words: list[str]) -> str | None:
    """The words of the list in the order in which each is named for the last time."""
    if not words:
        return None
    named = re.findall("|".join(rf"\b{re.escape(word)}\b" for word in words), text)
    last = {word: place for place, word in enumerate(named)}
    return " ".join(sorted(last, key=lambda word: last[word]))


def _written_number(text: str) -> str | None:
    """`"twenty one apples"` is 21: the first run of number words."""
    total = None
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _UNITS or word in _TENS:
            total = (total or 0) + _UNITS.get(word, 0) + _TENS.get(word, 0)
        elif word == "hundred":
            total = (total or 1) * 100
        elif total is not None and word != "and":
            break
    return None if total is None else str(total)
