"""What an answer in a text is, and whether it is right: extraction, normalisation, exact match, F1, majority.

Extraction and normalisation are those of lm-eval's tasks and, for spans, of the SQuAD paper's script (Rajpurkar et al.
2016): case, punctuation and the English articles do not count, in any language.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["flexible_number", "is_number", "majority", "marked_number", "plain", "span_scores", "stripped", "without"]

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AROUND_NUMBERS = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def marked_number(text: str) -> str | None:
    """The first number after `#### `, as GSM8K's solutions end."""
    found = _MARKED.search(text)
    return found[1] if found else None


def flexible_number(text: str) -> str | None:
    """The last number of a text, wherever it stands: digits with commas, points and a dollar sign among them."""
    found = _NUMBER.findall(text)
    return found[-1].strip() if found else None


def without(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    """What is left when each pattern in turn has been taken out."""
    for pattern in patterns:
        text = pattern.sub("", text)
    return text


def is_number(found: str | None, right: str) -> bool:
    """Whether two texts are the same number as written: without commas, dollar signs and a last full stop."""
    return found is not None and _bare(found) == _bare(right)


def _bare(text: str) -> str:
    return without(text, _AROUND_NUMBERS).lower()


def stripped(text: str) -> str:
    """Without case, spaces at the end, and punctuation, in this order: `"St. John! "` is `"st john"`."""
    return text.lower().rstrip().translate(_PUNCTUATION)


def plain(text: str) -> str:
    """A span to compare: without case, punctuation, articles, and with one space between words."""
    return " ".join(_ARTICLES.sub(" ", stripped(text)).split())


def span_scores(found: str, right: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 over words, the best over all right answers."""
    words = plain(found).split()
    exact = max(float(words == plain(answer).split()) for answer in right)
    return exact, max(_f1(words, plain(answer).split()) for answer in right)


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    n_same = sum((Counter(found) & Counter(right)).values())
    return 2 * n_same / (len(found) + len(right))


def majority(answers: Iterable[str | None]) -> str | None:
    """The answer given most often, the first of equals; texts without one do not vote (Wang et al. 2022)."""
    counts = Counter(_bare(answer) for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None
