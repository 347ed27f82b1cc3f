"""`coterie VERB`: finds the verb, runs it, and turns whatever goes wrong into one sentence and an exit code.

A verb's module is imported when the verb is named, so `--help` and `--version` need neither torch nor a model.
Exit codes: 0 done (also when the reader of a pipe leaves early), 2 the user's mistake, 130 Ctrl-C, 143 `kill`, 1 a
fault of ours.
"""

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from coterie import __version__
from coterie.cli.interrupt import unwinding
from coterie.errors import CoterieError, nearest

__all__ = ["VERBS", "main"]

VERBS = {
    "generate": "Continue a text; the shipped model does it when none is named.",
    "chat": "Talk to a model, turn by turn.",
    "serve": "Serve a model to OpenAI and Mistral clients, with a chat page.",
    "tokenize": "Show the pieces and ids of a text, and why.",
    "inspect": "Read off a checkpoint what it is: parameters, experts, bytes, what fits here.",
    "convert": "Write a model in another format, bit for bit where the type stays.",
    "verify": "Check a model folder against its sha256 manifest, and its weights for NaN.",
    "pull": "Download a model from the Hugging Face hub, never a pickle.",
    "train": "Train a model from a recipe.",
    "plan": "Say what a recipe will cost on this machine: memory, time, the loss to expect.",
    "eval": "Measure a model: benchmarks from local files, each score with its uncertainty.",
    "trace": "Record which experts read which token, and see what that shows.",
    "bench": "Measure a server under load: time to first token, between tokens, throughput, goodput.",
    "doctor": "Say what this machine has, what is wrong, and how to mend it.",
}
_EXAMPLE = """\b
Examples:
  coterie generate "Il était une fois" --routing
  coterie inspect demo
  coterie pull mistralai/Mixtral-8x7B-Instruct-v0.1"""
_THEIRS = {  # the file system's own words name the file and say why; none of these is a fault of the program
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EEXIST, errno.ENOTEMPTY),
}


@dataclass
class _Flags:
    debug: bool = False


class _Verbs(click.Group):
    """The group that imports a verb only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"coterie.cli.{cmd_name}").command
        if not any(p.name == "debug" for p in command.params):
            command.params.append(_debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not ctx.resilient_parsing:
            verbs = ", ".join(VERBS)
            raise click.UsageError(f"{args[0]!r} is not a verb, expected one of {verbs}{nearest(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _debug_option() -> click.Option:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and (flags := ctx.find_object(_Flags)):
            flags.debug = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of an error.",
    )


@click.command(
    cls=_Verbs,
    params=[_debug_option()],
    epilog=_EXAMPLE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="coterie", message="%(prog)s %(version)s")
def _coterie() -> None:
    """Run, train and look inside sparse mixture-of-experts language models of the Mixtral family.

    A MODEL is a folder, a .gguf file, `org/name[:FILE.gguf]` in the Hugging Face cache, or `demo`, which ships.
    Results go to stdout, everything else to stderr. `coterie VERB --help` says more about each.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with `args` (default: the process's) and return the exit code."""
    _speak_utf8()
    flags = _Flags()
    try:
        with unwinding():
            code = _run(list(sys.argv[1:] if args is None else args), flags)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return 130
    except Exception as e:
        if flags.debug:
            traceback.print_exc()
        return _explain(e, flags.debug)


def _run(args: list[str], flags: _Flags) -> int:
    _coterie._main_shell_completion({}, "coterie")
    try:
        with _coterie.make_context("coterie", args, obj=flags) as ctx:
            _coterie.invoke(ctx)
        return 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except EOFError:
        raise click.Abort() from None


def _explain(error: Exception, debug: bool) -> int:
    """Print the one sentence for an error and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, click.ClickException):
        _say(_usage_sentence(error))
        return 2
    if isinstance(error, CoterieError):
        _say(str(error))
        return 2
    if _is_out_of_memory(error):
        first = next(iter(str(error).splitlines()), "")
        _say(f"out of memory{': ' + first if first else ''}; use a smaller model, context or batch")
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "coterie":
        _say(f"the Python package {error.name} is not installed; install it with: pip install {error.name}")
        return 2
    if isinstance(error, OSError) and error.errno in _THEIRS:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _say(f"{where + ': ' if where else ''}{error.strerror}")
        return 2
    hint = "" if debug else "; run it again with --debug for the traceback"
    _say(f"a fault of coterie's own: {type(error).__name__}: {error}{hint}, and please report it")
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own, torch's for a card, and the plain `RuntimeError` that torch raises for main memory."""
    is_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch


def _usage_sentence(error: click.ClickException) -> str:
    """click's message as one sentence that starts with the verb and ends with where to read on."""
    ctx = getattr(error, "ctx", None)
    message = error.message.strip().rstrip(".") or error.format_message().strip().rstrip(".")
    if isinstance(error, click.MissingParameter | click.BadParameter):
        message = error.format_message().strip().rstrip(".")
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        known = [name for p in ctx.command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")]
        message = f"there is no option {error.option_name!r}{nearest(error.option_name, [*known, '--help'])}"
        takes_text = any(isinstance(p, click.Argument) for p in ctx.command.params)
        if takes_text and not error.option_name.startswith("--"):
            message += "; a text that begins with a dash goes after --"
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    path = ctx.command_path if ctx is not None else "coterie"
    verb = path.removeprefix("coterie").strip()
    return f"{verb + ': ' if verb else ''}{message} (try '{path} --help')"


def _say(sentence: str) -> None:
    """One line on stderr, where there still is one."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence_stdout()
    try:
        print(f"coterie: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        pass


def _speak_utf8() -> None:
    """UTF-8 whatever the locale; what UTF-8 cannot hold (half a surrogate pair) is escaped, not fatal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about a reader that left."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        sys.stdout = io.StringIO()
