"""The words of docs/inside.md, from a report's JSON: they say what the figures say, whichever way these fall."""

import textwrap
from collections.abc import Iterable
from typing import Any

__all__ = ["inside_page", "pictures_of"]

Document = dict[str, Any]
_SHOWN = {"repeats": 2, "caching": 2}  # pictures of a finding, where not one
_WIDTH = 128
_LANGUAGES = {"de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "python": "Python"}
_RARE = 0.05  # a test's usual threshold
_HEAD = """# Inside the shipped model

{opening}

```bash
coterie trace record {model} $COTERIE_DATA/text/*.valid.jsonl.gz -o inside.trace --guess
coterie trace report inside.trace -o report
coterie trace report inside.trace --json | jq '.sections[] | select(.key == "caching")'    # all numbers of one finding
```

`report/index.html` is the whole report on one page, with every table; this page has its sentences, some of its
pictures, and what they say beside the paper (Mixtral of Experts, arXiv 2401.04088). All of it is written by
`python benchmarks/inside.py` from `report/report.json`: no figure is typed by hand. Layers are counted from 0.
"""
_OPENING = (
    "What the {experts} experts in each of the {layers} layers do, of which a token meets {top_k}. The model is "
    "[{model}](demo.md); it reads text that it has not seen in training, {tokens:,} tokens of {domains}:"
)
_TAIL = """## What this cannot show

One model, trained once: with another seed other experts do other things, and an expert's number means nothing. Text of
{tokens:,} tokens shows what is large. That an expert reads a kind of token more often does not say what it does with
it; `coterie generate --routing` shows any text in the colours of its experts.
"""


_SYNTAX = (
    "**Experts and syntax.** The paper sees them go by syntax: the indentation of code, words such as `self`, all to "
    "the same experts, most at the first and last layers. Here:"
)


def inside_page(document: Document) -> str:
    """The Markdown text of the page."""
    about = {
        "model": document["model"], "tokens": document["tokens"], "layers": document["layers"],
        "experts": document["experts"], "top_k": document["experts_per_token"],
        "domains": _named(document),
    }  # fmt: skip
    head = _HEAD.format(opening=_filled(_OPENING.format(**about)), model=about["model"])
    parts = [head, beside_the_paper(document)]
    parts += [_finding(section) for section in document["sections"]]
    return "\n".join([*parts, _TAIL.format(**about)])


def pictures_of(document: Document) -> list[str]:
    """The names of the pictures that the page shows."""
    return [name for section in document["sections"] for name in _shown(section)]


def _shown(section: Document) -> list[str]:
    return list(section["plots"][: _SHOWN.get(section["key"], 1)])


def _finding(section: Document) -> str:
    lines = [f"## {section['title']}", "", _filled(section["sentence"]), ""]
    for name in _shown(section):
        lines += [f"![{section['title']}](inside-{name}.svg)", ""]
    note = f"*{section['note']}* " if section["note"] else ""
    lines += [_filled(f"{note}Key: `{section['key']}`."), ""]
    return "\n".join(lines)


def beside_the_paper(document: Document) -> str:
    """What holds here of what the paper says of Mixtral, and what does not."""
    facts = {section["key"]: section["facts"] for section in document["sections"]}
    sentences = {section["key"]: section["sentence"] for section in document["sections"]}
    lines = []
    if "domains" in facts:
        lines.append(_topics(facts["domains"], document))
    if "kinds" in facts:
        lines.append(f"{_SYNTAX} {sentences['kinds']}")
    if "repeats" in facts:
        lines += _repeats(facts["repeats"])
    if "caching" in facts:
        lines.append(_caching(facts["caching"]))
    return "\n".join(["## Beside the paper", "", *(_filled(f"- {line}", "  ") for line in lines), ""])


def _topics(facts: Document, document: Document) -> str:
    claim = "**Experts and domains.** The paper finds no pattern by topic, but for a marginal one in mathematics."
    test = facts["all"]
    if test["p_all"] is None:
        return f"{claim} The text here has a single domain, so that this says nothing about it."
    moved, chance = _mean(test["moved"]), _mean(test["by_chance"])
    figures = f"{moved:.1%} of a domain's slots would have to move to look like all text, {chance:.1%} by chance alone"
    if test["p_all"] >= _RARE:
        return f"{claim} The same here: {figures} (p = {test['p_all']:.3f})."
    kinds = _named(document)
    if moved < 0.02:
        return f"{claim} Much the same here: domains ({kinds}) differ by more than chance, but by little: {figures}."
    return (
        f"{claim} **It is otherwise here**: {figures} (p = {test['p_all']:.3f}). But domains here ({kinds}) differ in "
        "their words, the paper's in their topics, mostly in English: where experts go by the token, as the paper says "
        "they do, languages must part them."
    )


def _repeats(facts: Document) -> Iterable[str]:
    ours, random, paper = facts["by_domain"]["all"], facts["random"], facts["paper_mean"]
    for key, name in (("first", "The same first choice twice in a row"), ("either", "An expert in common")):
        values = [v for v in ours[key] if v is not None]
        if not values:
            continue
        best, theirs = values.index(max(values)), paper[key]
        n = len(values)
        where = "in the middle" if 0 < best < n - 1 else "at the last layer" if best == n - 1 else "at the first layer"
        same = "as in the paper" if 0 < best < n - 1 else "where the paper has most in the middle"
        low = "the first layer is nearest to chance, as there" if _nearest(values, random[key]) == 0 else (
            f"nearest to chance is layer {_nearest(values, random[key])}, there the first"
        )  # fmt: skip
        yield (
            f"**{name}.** Mixtral: {theirs[0]:.1f}, {theirs[1]:.1f} and {theirs[2]:.1f} % at its first, middle and "
            f"last layer. Here {values[0]:.1%} at the first layer, {max(values):.1%} at most (layer {best}, {where}, "
            f"{same}) and {values[-1]:.1%} at the last, where random routing gives {random[key]:.1%}; {low}."
            + _given_shares(ours.get(f"{key}_given_shares"), values, best)
        )


def _given_shares(given: list[float | None] | None, values: list[float], layer: int) -> str:
    """How much of the repeats is neighbours being alike, and how much a domain's few favourites."""
    chance = given[layer] if given else None
    if chance is None:
        return ""
    reason = "so most of it is the domain's favourites, not the neighbour" if values[layer] - chance < 0.1 else (
        "so it is the neighbour that counts"
    )  # fmt: skip
    return f" Two tokens of one domain far apart have it in {chance:.1%} at layer {layer}, {reason}."


def _caching(facts: Document) -> str:
    half, everything = facts["half"], facts["experts"]
    by_layer = facts["by_layer"]["at_half"]
    if by_layer.get("lru") is None:
        return "**Caching.** Every expert is needed at every token."
    lru, gain = by_layer["lru"], by_layer["lru"] - half / everything
    claim = "**Caching.** The paper says that such locality can be used to cache experts."
    figures = (
        f"with {half} of {everything} experts in memory, LRU finds {lru:.1%} of what tokens ask for, where random "
        f"routing gives {half / everything:.1%}"
    )
    if gain < 0.02:
        return f"{claim} There is next to nothing to gain here: {figures}."
    return f"{claim} It helps here, too: {figures}. The best possible policy finds {by_layer['optimal']:.1%}."


def _nearest(values: list[float], chance: float) -> int:
    return min(range(len(values)), key=lambda n: abs(values[n] - chance))


def _mean(values: list[float | None]) -> float:
    there = [v for v in values if v is not None]
    return sum(there) / max(len(there), 1)


def _named(document: Document) -> str:
    return _listed([_LANGUAGES.get(name, name) for name in document["domains"]])


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
