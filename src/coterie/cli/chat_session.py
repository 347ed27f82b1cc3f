"""A conversation and the commands that change it: `/system`, `/set`, `/undo`, `/routing`, `/show`, `/clear`, `/bye`.

A turn that begins with a slash is a command; two slashes begin a text that starts with one.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note
from coterie.cli.routed_stream import RoutedStream, choose_layer
from coterie.cli.routing_view import RoutedToken, coloured, console, legend, table
from coterie.cli.sampling_options import parse_value
from coterie.errors import RequestError, nearest

if TYPE_CHECKING:
    from coterie.api import Delta, LanguageModel

__all__ = ["Session", "checked"]

_HELP = """\
/system TEXT      what the assistant is told before the first turn; without TEXT: nothing
/set NAME VALUE   a generation parameter, for example /set temperature 0.8; without VALUE: back to its default
/undo             forget the last turn and its answer
/routing on|off   colour each token by its first expert; a number chooses the layer
/show             the conversation and the settings
/clear            forget the conversation, keep the settings
/help             this list
/bye              leave (so does Ctrl-D)
A text that starts with a slash: write two.
Several lines: between two lines of \"\"\", or a backslash at a line's end."""
_NOT_HERE = ("n", "logprobs", "routing")


class Session:
    """`take` a turn: obey it or answer it. Settings are checked when they are made."""

    def __init__(self, lm: "LanguageModel", options: dict[str, Any], chat_form: str | None = None):
        self.lm = lm
        self.messages: list[dict[str, str]] = []
        self.system = ""
        self._chat_form = chat_form
        self._layer: int | None = None  # coloured by this layer's experts
        self._options = checked(options)
        self._commands: dict[str, Callable[[str], None]] = {
            "system": self._set_system,
            "set": self._set,
            "undo": self._undo,
            "routing": self._set_routing,
            "show": self._show,
            "clear": self._clear,
            "help": lambda _: note(_HELP),
        }

    def take(self, turn: str) -> bool:
        """Obey or answer; False: the user leaves."""
        if turn.strip() in ("/bye", "/exit", "/quit"):
            return False
        if turn.startswith("/") and not turn.startswith("//"):
            self.obey(turn)
        elif turn.strip():
            self.answer(turn.removeprefix("/") if turn.startswith("//") else turn)
        return True

    def obey(self, line: str) -> None:
        """One command. Raises `RequestError` for one that does not exist or a wrong value."""
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            known = [*self._commands, "bye"]
            raise RequestError(f"/{name} is not a command, expected one of /{', /'.join(known)}{nearest(name, known)}")
        self._commands[name](rest.strip())

    def answer(self, text: str) -> None:
        """Print the answer as it comes. Ctrl-C ends it and keeps what came; on an error the turn is taken back."""
        turn = {"role": "user", "content": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        options = {**self._options, "routing": self._layer is not None}
        said: list[str] = []
        printer = _plain if self._layer is None else _Coloured(self.lm, self._layer)
        try:
            for delta in self.lm.stream([*first, *self.messages, turn], chat_form=self._chat_form, **options):
                said.append(delta.text)
                printer(delta)
        except KeyboardInterrupt:
            note("\n(stopped)")
        print(flush=True)
        self.messages += [turn, {"role": "assistant", "content": "".join(said)}]

    def _set_system(self, text: str) -> None:
        self.system = text

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" " if " " in text.partition("=")[0].rstrip() else "=")
        name = name.rstrip()
        if not name:
            raise RequestError("/set needs a NAME and a VALUE, for example /set temperature 0.8")
        if value.strip():
            self._options = checked({**self._options, name: parse_value(value.strip())})
        else:
            checked({name: _default(name)})  # says that there is no such name
            self._options = checked({n: v for n, v in self._options.items() if n != name})

    def _undo(self, _: str) -> None:
        if not self.messages:
            raise RequestError("there is no turn to take back")
        del self.messages[-2:]

    def _set_routing(self, text: str) -> None:
        self._layer = None if text == "off" else choose_layer(self.lm, None if text in ("", "on") else text)

    def _show(self, _: str) -> None:
        routing = "off" if self._layer is None else f"layer {self._layer}"
        settings = " ".join(f"{name}={value}" for name, value in self._options.items())
        note(f"model {self.lm.name}; routing {routing}; {settings or 'default settings'}")
        for m in [{"role": "system", "content": self.system}] * bool(self.system) + self.messages:
            note(f"{m['role']}: {m['content']}")

    def _clear(self, _: str) -> None:
        self.messages.clear()


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """The same generation parameters; `RequestError` for one that does not exist, is out of bounds or has no use."""
    from coterie.engine import SamplingParams

    for name in _NOT_HERE:
        if name in options:
            raise RequestError(f"{name} has no use in a chat: use coterie generate")
    SamplingParams.of(options)
    return options


def _default(name: str) -> Any:
    from coterie.engine import SamplingParams

    return getattr(SamplingParams(), name, None)


def _plain(delta: "Delta") -> None:
    sys.stdout.write(delta.text)
    sys.stdout.flush()


class _Coloured:
    """Prints tokens in their expert's colour, and the legend at the end; a table where stdout is no terminal."""

    def __init__(self, lm: "LanguageModel", layer: int):
        self._stream, self._layer = RoutedStream(lm, layer), layer
        self._n_experts = lm.config.num_local_experts or 0
        self._console = console()
        self._n_shown = 0

    def __call__(self, delta: "Delta") -> None:
        tokens: list[RoutedToken] = self._stream.push(delta)
        if self._console.is_terminal:
            self._console.print(*map(coloured, tokens), sep="", end="")
            if delta.finish_reason is not None:
                self._console.print("\n", legend(self._n_experts, self._layer), sep="\n", end="")
        else:
            sys.stdout.write(table(tokens, self._n_shown))
            sys.stdout.flush()
            self._n_shown += len(tokens)
