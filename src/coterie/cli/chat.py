"""`coterie chat`: a conversation, turn by turn.

Ctrl-C while the model answers ends the answer and keeps what was said; at the prompt it must come twice. From a pipe
every line is a turn, and the first error ends it all. Answers go to stdout, everything else to stderr.
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.chat_session import Session, checked
from coterie.cli.model_argument import load_with_bar
from coterie.cli.output import is_terminal, note
from coterie.cli.sampling_options import parse_setting
from coterie.errors import CoterieError, RequestError

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["command"]


@click.command("chat")
@click.argument("model", default="demo")
@click.option("--system", metavar="TEXT", help="What the assistant is told before the first turn.")
@click.option(
    "--chat-form", metavar="NAME", help="How turns are written, where the folder does not say: mistral-v1, chatml ..."
)
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens of an answer (default 256).")
@click.option("-t", "--temperature", type=float, metavar="T", help="0, the default, always takes the likeliest token.")
@click.option("--seed", type=int, metavar="S", help="The same seed, the same answers.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other parameter: top_p, top_k ...")
@click.option("--routing", is_flag=True, help="Colour each token by its first expert from the start.")
def command(
    model: str, system: str | None, chat_form: str | None, settings: tuple[str, ...], routing: bool, **flags: Any
) -> None:
    """Talk to MODEL (default: demo). /help lists what may be typed beside text.

    \b
    coterie chat path/to/Mixtral-8x7B-Instruct-v0.1 --system "Be brief." --temperature 0.7

    \b
    A turn of several lines: between two lines of \"\"\", or with a backslash at the end of each but the last.
    """
    from coterie.tokenizer import chat_form as find_chat_form

    options = {name: value for name, value in flags.items() if value is not None}
    options = checked({**options, **dict(parse_setting(s) for s in settings)})
    if chat_form is not None:
        find_chat_form(chat_form)  # says that there is none, before the weights are read
    lm = load_with_bar(model)
    _ = lm.tokenizer  # says that there is none
    session = Session(lm, options, chat_form)
    if system:
        session.obey(f"/system {system}")
    if routing:
        session.obey("/routing on")
    _greet(lm, chat_form)
    _talk(session)


def _greet(lm: "LanguageModel", chat_form: str | None) -> None:
    if lm.chat_form is None and chat_form is None:
        note(
            f"{lm.name} is not tuned for chat, or its folder does not say how: your text is continued, not answered "
            "(--chat-form NAME says how)."
        )
    if is_terminal(sys.stdin):
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")


def _talk(session: Session) -> None:
    is_typed = is_terminal(sys.stdin)
    if is_typed:
        import readline  # noqa: F401  (importing it gives input() line editing and a history)
    was_interrupted = False
    while True:
        try:
            turn = _read_turn(is_typed)
            was_interrupted = False
        except KeyboardInterrupt:
            if was_interrupted or not is_typed:
                raise
            was_interrupted = True
            note("\n(Ctrl-C again or Ctrl-D leaves)")
            continue
        if turn is None:
            return
        try:
            if not session.take(turn):
                return
        except CoterieError as e:
            if not is_typed:
                raise
            note(f"coterie: {e}")


def _read_turn(is_typed: bool) -> str | None:
    """One turn, perhaps of several lines; None at the end of input."""
    line = _read_line("> " if is_typed else "")
    if line is None:
        return None
    if line.strip() == '"""':
        return _read_block(is_typed)
    lines = []
    while line is not None and line.endswith("\\"):
        lines.append(line[:-1])
        line = _read_line(". " if is_typed else "")
    return "\n".join([*lines, *([] if line is None else [line])])


def _read_block(is_typed: bool) -> str:
    lines = []
    while (line := _read_line(". " if is_typed else "")) is not None and line.strip() != '"""':
        lines.append(line)
    return "\n".join(lines)


def _read_line(prompt: str) -> str | None:
    try:
        if prompt:
            return input(prompt)
        line = sys.stdin.readline()
    except EOFError:
        return None
    except UnicodeDecodeError as e:
        raise RequestError(f"stdin is not UTF-8 ({e.reason}): convert it to UTF-8 first") from None
    return line.removesuffix("\n").removesuffix("\r") if line else None
