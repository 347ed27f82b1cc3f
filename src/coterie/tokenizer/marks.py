"""What a chat form's mark looks like."""

import re

__all__ = ["is_mark"]

_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def is_mark(text: str) -> bool:
    """Whether a token is spelled like a mark (`<|im_start|>`, `[INST]`, `</s>`) rather than like a word."""
    return _MARK.fullmatch(text) is not None
