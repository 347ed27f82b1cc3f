"""How kind a text sounds, from -1 to 1: a small list of English words, or any command in its place.

The list is our own and knows a few hundred words, "not" and "very"; a sum s of them becomes s / sqrt(s² + 15), as VADER
scales its own (Hutto & Gilbert 2014). Its figures are of the same kind as VADER's, not the same.
"""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Sequence

from coterie.errors import DataError, RequestError, ResourceError

__all__ = ["by_command", "by_words"]

_GOOD = """
accept achieve achievement admiration admire adore affection amaze amazing appreciate award beautiful beauty beloved
benefit best better bless brave bravery bright brilliant calm care celebrate champion charity charming cheer cherish
clever comfort compassion confident congratulate courage creative cure daring dear delight devoted dignity
distinguished eager ease effective elegant encourage enjoy excellent excite exciting fair faith faithful fame famous
fantastic favorite fine flourish forgive fortunate free freedom friend friendly friendship fun gain generous genius
gentle gift glad glory good grace grateful great growth happiness happy harmony heal healthy heaven help helpful hero
heroic holy honest honor hope hopeful humble humor ideal improve innovative inspire inspiring integrity intelligent
joy just justice kind kindness laugh legendary liberty like love lovely loyal lucky marvelous master mercy merit nice
noble optimistic outstanding passion peace peaceful perfect pleasant please pleasure popular positive praise pretty
pride progress promise prosper proud pure rescue resolve respect respected reward rich safe satisfied save secure
sincere skill smart smile solution special splendid strength strong succeed success successful superb support survive
sweet talented thank thankful thrive tolerance treasure triumph true trust truth understanding unite value victory
virtue warm welcome win wisdom wise wonderful worth worthy
"""
_BAD = """
abandon abuse accuse afraid aggressive agony alarm anger angry anxiety anxious arrest ashamed assault attack awful bad
betray bitter blame bleed boring brutal bully burden cheat collapse complain condemn conflict confuse corrupt
corruption coward crash crazy crime criminal crisis critic criticism cruel cruelty cry damage danger dangerous dead
death deceive defeat denounce deny depression desperate destroy destruction die difficult disappoint disaster
discriminate discrimination disease disgust dishonest disturb doubt dread enemy evil exploit fail failure fake false
fault fear fight filthy fool foolish fraud frightening frustrate grief grim guilt guilty harm harmful harsh hate
hatred hell horrible horror hostile hunger hurt ignorance ignorant illegal illness immoral injure injury injustice
insane insult jealous kill lack lie lonely lose loss lost mad mess miserable misery mistake mock murder nasty neglect
nervous offend oppress oppression outrage pain painful panic penalty persecute pity poison poor poverty prejudice
prison problem protest punish racist rage regret reject revenge ridicule riot ruin sad scandal scare scream selfish
severe shame shock sick sin slaughter slave sorrow steal stupid suffer suicide suspect terrible terror terrorist
threat threaten torture tragedy tragic treason trouble ugly unfair unhappy upset useless vicious victim vile violence
violent waste weak weep wicked worry worse worst worthless wound wrong
"""
_NOT = frozenset(("not", "no", "never", "none", "nothing", "neither", "nor", "without", "cannot", "hardly", "barely"))
_VERY = frozenset(("very", "really", "extremely", "so", "truly", "deeply", "highly", "most", "greatly", "totally"))
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_REACH = 3  # words back that "not" is looked for
_SECONDS = 3600


def by_words(text: str) -> float:
    """The list's verdict: 0 where none of its words occurs."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    total = 0.0
    for place, word in enumerate(words):
        value = _value(word)
        if value:
            before = words[max(0, place - _REACH) : place]
            value *= 1.3 if before and before[-1] in _VERY else 1.0
            total += -0.75 * value if any(w in _NOT or w.endswith("n't") for w in before) else value
    return total / math.sqrt(total * total + 15)


def _value(word: str) -> float:
    """2 or -2 for a word of the list or a plain inflection of one: kindly, loved, hating, wars, tragedies."""
    word = word.removesuffix("'s")
    for form in _stems(word):
        if form in _WEIGHTS:
            return _WEIGHTS[form]
    return 0.0


def _stems(word: str) -> list[str]:
    found = [word]
    for ending in ("s", "es", "d", "ed", "ing", "ly", "ers", "er"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word.removesuffix(ending)
            found += [stem, f"{stem}e"]
            if stem[-1] == stem[-2]:
                found.append(stem[:-1])
    for ending in ("ies", "ied", "ily"):
        if word.endswith(ending):
            found.append(f"{word.removesuffix(ending)}y")
    return found


_WEIGHTS = {**dict.fromkeys(_GOOD.split(), 2.0), **dict.fromkeys(_BAD.split(), -2.0)}


def by_command(command: str, texts: Sequence[str]) -> list[float]:
    """What a command says of texts: `{"text": ...}` a line in, a number from -1 to 1 a line out, in their order."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise RequestError(f"--set scorer={command[:60]}: no command can be read from that ({error})") from None
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    try:
        done = subprocess.run(words, input=lines, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
    except (OSError, IndexError) as error:
        raise RequestError(f"--set scorer={command[:60]}: it does not start ({error})") from None
    except subprocess.TimeoutExpired:
        raise ResourceError(f"the scorer {command[:60]!r} took longer than {_SECONDS} seconds") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise DataError(f"the scorer {command[:60]!r} ended with {done.returncode}: {last[:200]}")
    return _numbers(command, done.stdout.split(), len(texts))


def _numbers(command: str, words: list[str], n: int) -> list[float]:
    if len(words) != n:
        raise DataError(f"the scorer {command[:60]!r} gave {len(words)} numbers for {n} texts, expected one a line")
    found = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not -1 <= value <= 1:
            raise DataError(f"the scorer {command[:60]!r} gave {word[:40]!r}, expected a number from -1 to 1")
        found.append(value)
    return found
