"""`--set anchor=NAME:RATING`: which model holds the scale, and at what."""

import math

from coterie.errors import RequestError

__all__ = ["parse_anchor"]


def parse_anchor(text: str) -> tuple[str, float]:
    """ "mixtral-8x7b-instruct:1114" -> its name and 1114.0; a name may have colons itself."""
    name, colon, value = text.rpartition(":")
    try:
        rating = float(value)
    except ValueError:
        rating = math.nan
    if not colon or not name.strip() or not abs(rating) <= 1e6:
        raise RequestError(f"anchor is {text[:60]!r}, expected NAME:RATING, for example mixtral-8x7b-instruct:1114")
    return name.strip(), rating
