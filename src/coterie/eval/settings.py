"""The `--set NAME=VALUE` options of a task, read as numbers and lists within bounds."""

import math
from collections.abc import Mapping

from coterie.errors import RequestError

__all__ = ["one_of", "parts_of", "real", "whole", "wholes"]


def whole(settings: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    """A whole number within bounds; a `RequestError` says them."""
    if name not in settings:
        return default
    return _number(settings[name], name, least, most)


def real(settings: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    """A number within bounds; a `RequestError` says them."""
    if name not in settings:
        return default
    try:
        value = float(settings[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise RequestError(f"--set {name}={settings[name][:60]}: expected a number from {least:g} to {most:g}")
    return value


def wholes(
    settings: Mapping[str, str], name: str, default: tuple[int, ...], *, least: int, most: int
) -> tuple[int, ...]:
    """Whole numbers with commas between them, sorted, each once."""
    if name not in settings:
        return default
    return tuple(sorted({_number(part, name, least, most) for part in parts_of(settings, name)}))


def parts_of(settings: Mapping[str, str], name: str) -> list[str]:
    """What stands between the commas, at most a hundred parts; nothing where the option is not given."""
    if name not in settings:
        return []
    parts = [part.strip() for part in settings[name].split(",")]
    if not all(parts) or len(parts) > 100:
        raise RequestError(f"--set {name}={settings[name][:60]}: expected values with one comma between each two")
    return parts


def one_of(settings: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    """One of the known values; the first of them where the option is not given."""
    value = settings.get(name, known[0])
    if value not in known:
        raise RequestError(f"--set {name}={value[:60]}: expected {' or '.join(known)}")
    return value


def _number(text: str, name: str, least: int, most: int) -> int:
    try:
        value = int(text) if len(text) <= 12 else None
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise RequestError(f"--set {name}={text[:60]}: expected a whole number from {least} to {most}")
    return value
