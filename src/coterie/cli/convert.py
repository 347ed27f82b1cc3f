"""`coterie convert SRC DST --to FORMAT`: one format into another, streamed, whole or not at all."""

from pathlib import Path

import click

from coterie.cli.model_argument import resolve_model
from coterie.cli.output import human_bytes, note, progress

__all__ = ["command"]


@click.command("convert", short_help="Write a model in another format.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT", help="The format to write: huggingface, mistral or gguf.")
@click.option("--type", "number_type", metavar="TYPE", help="bf16, f16 or f32; q8_0 or q4_0 for gguf; else as it is.")
def command(source: str, destination: Path, to: str, number_type: str | None) -> None:
    """Write the model SRC as DST, a new folder or .gguf file; where the type stays, every byte stays.

    DST must not exist. Weights with NaN or Inf are refused. The tokenizer goes along.

    \b
    coterie convert Mixtral-8x7B-Instruct-v0.1 mixtral-consolidated --to mistral
    coterie convert Mixtral-8x7B-Instruct-v0.1 mixtral.Q8_0.gguf --to gguf --type q8_0
    """
    from coterie.checkpoint.convert import convert

    with progress("converting") as report:
        convert(resolve_model(source), destination, to=to, type=number_type, progress=report)
    written = [destination] if destination.is_file() else destination.iterdir()
    size = sum(path.stat().st_size for path in written)
    note(f"wrote {destination} ({human_bytes(size)})")
