"""Which model answered."""

from coterie.api import LanguageModel
from coterie.engine.fingerprint import fingerprint as fingerprint_of_model

__all__ = ["fingerprint"]


def fingerprint(lm: LanguageModel) -> str:
    """32 hexadecimal digits of configuration and weights."""
    return fingerprint_of_model(lm.model)
