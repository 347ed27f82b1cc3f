"""The MODEL of a command line: a folder, a file, `org/name[:FILE.gguf]` in the Hugging Face cache, or `demo`."""

from pathlib import Path

import click

from coterie.checkpoint.hub import find_model

__all__ = ["model_argument", "resolve_model"]


def resolve_model(source: str) -> Path:
    """Where the model is on this machine; nothing is downloaded. Raises `CheckpointError` or `DownloadError`."""
    return find_model(source)


model_argument = click.argument("model", metavar="MODEL")
