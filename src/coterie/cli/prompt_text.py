"""The text that a verb works on: its argument, a file, or what comes through a pipe."""

import sys
from pathlib import Path

from coterie.cli.output import is_terminal
from coterie.errors import RequestError

__all__ = ["read_text"]


def read_text(argument: str | None, file: Path | None = None) -> str:
    """The argument, the file or stdin; one line's end at the end of the last two is the editor's, not the text's.

    Raises `RequestError` for two of them, none, or bytes that are not UTF-8.
    """
    if argument is not None and file is not None:
        raise RequestError("there is a text and a --file: give one of the two")
    if argument is not None:
        return argument
    if file is None and is_terminal(sys.stdin):
        raise RequestError("there is no text: give it as an argument, in a file, or on stdin")
    data, where = (sys.stdin.buffer.read(), "stdin") if file is None else (file.read_bytes(), str(file))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise RequestError(f"{where} is not UTF-8: byte {e.start} is 0x{data[e.start]:02x}; convert it first") from None
    return text.removesuffix("\n").removesuffix("\r")
