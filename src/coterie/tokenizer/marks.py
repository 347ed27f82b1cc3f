"""What a chat form's mark looks like: `<|im_start|>`, `[INST]`, `</s>`."""

import re
from collections.abc import Iterator

__all__ = ["find_marks", "is_mark"]

_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def is_mark(text: str) -> bool:
    """Whether a token is spelled like a mark rather than like a word."""
    return _MARK.fullmatch(text) is not None


def find_marks(text: str) -> Iterator[tuple[str, int]]:
    """Everything in `text` that is spelled like a mark, and where it starts."""
    return ((match[0], match.start()) for match in _MARK.finditer(text))
