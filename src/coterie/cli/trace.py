"""`coterie trace record|merge|report|compare`: routing as a file, and what it shows.

Like a verb, what follows `trace` is imported when it is named.
"""

from importlib import import_module

import click

from coterie.errors import nearest

__all__ = ["command"]

_COMMANDS = {
    "record": "Read text with a model and write which experts read which token.",
    "merge": "Put several traces of one model into one file.",
    "report": "Say what a trace shows, with tables, pictures and a page.",
    "compare": "Say how far routing moved between checkpoints that read the same text.",
}
_EXAMPLES = """\b
Examples:
  coterie trace record demo stories.txt code.jsonl.gz -o run.trace
  coterie trace report run.trace -o report"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = import_module(f"coterie.cli.trace_{cmd_name}").command
        if not any(p.name == "debug" for p in found.params):
            found.params += [p for p in self.params if p.name == "debug"]
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not ctx.resilient_parsing:
            expected = ", ".join(_COMMANDS)
            raise click.UsageError(f"{args[0]!r} is none of {expected}{nearest(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command("trace", cls=_Commands, epilog=_EXAMPLES, no_args_is_help=True)
def command() -> None:
    """Record which experts read which token, and see what that shows."""
