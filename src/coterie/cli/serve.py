"""`coterie serve`: answer OpenAI's and Mistral's clients over HTTP, with a chat page.

Everything but the dozen flags is in `--config FILE.toml`. Nothing goes to stdout, except for the key of `--new-key`.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.model_argument import load_with_bar, resolve_model
from coterie.cli.output import note
from coterie.errors import ConfigError

if TYPE_CHECKING:
    from coterie.server.app import App
    from coterie.server.settings import Settings

__all__ = ["command"]


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL | NAME=MODEL]...")
@click.option("--host", metavar="ADDRESS", help="The address to listen on (default 127.0.0.1: this machine only).")
@click.option("--port", type=int, metavar="N", help="The port (default 8000; 0: any free one).")
@click.option("--api-key-file", type=click.Path(), metavar="FILE", help="Who may ask; needed on any other address.")
@click.option("--new-key", metavar="NAME[:admin]", help="Add a key to --api-key-file, print it, and exit.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="All other settings, as TOML.")
@click.option("--idle-unload", metavar="TIME", help="Unload a model that nobody has used for so long, such as 30m.")
@click.option("--max-live", type=int, metavar="N", help="Most answers written at the same time (default 32).")
@click.option("--cache-gb", type=float, metavar="N", help="Memory for keys and values (default: from what is free).")
@click.option("--speculate", is_flag=True, default=None, help="Guess tokens from the text so far; never changes it.")
@click.option("--strict-api", is_flag=True, default=None, help="Refuse request fields that nothing here reads.")
@click.option("--drain", metavar="TIME", help="How long a shutdown waits for what is in work (default 30s).")
def command(models: tuple[str, ...], new_key: str | None, config: Path | None, **flags: Any) -> None:
    """Serve MODEL (default: demo, which ships) to OpenAI's and Mistral's clients, with a chat page at /.

    \b
    coterie serve
    coterie serve demo other=/path/to/folder --port 9000 --idle-unload 30m
    coterie serve --new-key alice --api-key-file keys.txt
    coterie serve MODEL --host 0.0.0.0 --api-key-file keys.txt
    """
    if new_key is not None:
        _add_key(new_key, flags["api_key_file"])
        return
    settings, sources = _settled(models, config, {k: v for k, v in flags.items() if v is not None})
    for source in sources.values():
        resolve_model(source)  # one that is not there is said now
    _run(settings, sources)


def _settled(models: tuple[str, ...], config: Path | None, flags: dict[str, Any]) -> "tuple[Settings, dict[str, str]]":
    from coterie.server.settings import Settings, read_config

    values, sources = ({}, {}) if config is None else read_config(config)
    settings = Settings().updated(values).updated(flags)
    given: dict[str, str] = {}
    for text in models:
        name, equals, source = text.partition("=")
        name, source = (name, source) if equals and "/" not in name else (_name_of(text), text)
        if not name or not source:
            raise ConfigError(f"{text!r} is not a model, expected MODEL or NAME=MODEL")
        if given.setdefault(name, source) != source:
            raise ConfigError(f"two models are named {name!r}: give one of them another name with NAME=MODEL")
    return settings, {**given, **{k: v for k, v in sources.items() if k not in given}} or {"demo": "demo"}


def _name_of(source: str) -> str:
    """What clients call a model that was given no name: `org/name` itself, of a path its last part."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _add_key(text: str, file: str | None) -> None:
    from coterie.server.keys import add_key

    if file is None:
        raise ConfigError("--new-key needs the file to add it to: --api-key-file FILE")
    name, _, scope = text.partition(":")
    print(add_key(Path(file), name, scope or "user"))
    note(f"the key of {name}, which is not shown again; {file} holds its sha256 only")


def _run(settings: "Settings", sources: dict[str, str]) -> None:
    from coterie.server.app import build_app
    from coterie.server.keys import Keys
    from coterie.server.metrics import Metrics
    from coterie.server.models import Models
    from coterie.server.run import check_address, open_socket, serve
    from coterie.server.settings import is_loopback

    check_address(settings)
    keys = Keys(None if settings.api_key_file is None else Path(settings.api_key_file))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="coterie: %(message)s")
    sock = open_socket(settings)
    if not is_loopback(settings.host):
        note(
            "WARNING: other machines can reach this address. Only keys of the key file are let in, but without TLS in "
            "front of it keys and texts can be read on the way."
        )

    def make_app() -> "App":
        metrics = Metrics()
        models = Models(sources, load_with_bar, settings, metrics.of_model)
        return build_app(models, settings, keys, metrics)

    code = serve(make_app, sock, note)
    if code:
        raise click.exceptions.Exit(code)
