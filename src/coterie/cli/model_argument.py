"""The MODEL of a command line: a folder, a file, `org/name[:FILE.gguf]` in the Hugging Face cache, or `demo`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coterie.checkpoint.hub import find_model
from coterie.cli.output import note, progress

if TYPE_CHECKING:
    from coterie.api import LanguageModel
    from coterie.config import ModelConfig
    from coterie.tokenizer import Tokenizer

__all__ = ["load_with_bar", "model_argument", "resolve_model"]


def resolve_model(source: str) -> Path:
    """Where the model is on this machine; nothing is downloaded. Raises `CheckpointError` or `DownloadError`."""
    return find_model(source)


model_argument = click.argument("model", metavar="MODEL")


def load_with_bar(
    source: str, check: "Callable[[ModelConfig, Tokenizer | None], None]" = lambda config, tokenizer: None
) -> "LanguageModel":
    """The model, with a progress bar where reading it takes a while; `check` may raise before that begins."""
    from coterie.api import open_model

    with progress(f"loading {source}") as report:
        return open_model(source, progress=report, check=check, note=note)
