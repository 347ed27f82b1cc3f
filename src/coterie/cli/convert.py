"""`coterie convert SRC DST --to FORMAT`: one format into another, streamed, whole or not at all."""

from pathlib import Path

import click

from coterie.cli.model_argument import resolve_model
from coterie.cli.output import human_bytes, note, progress

__all__ = ["command"]


@click.command("convert", short_help="Write a model in another format.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, metavar="FORMAT", help="The format to write: huggingface, mistral, gguf or packed."
)
@click.option(
    "--type", "number_type", metavar="TYPE", help="bf16, f16 or f32; q8_0 or q4_0 for gguf; int8 to int2 for packed."
)
@click.option("--method", default="rtn", show_default=True, metavar="METHOD", help="Of packed files: rtn or hqq.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Of packed files: a text to weigh by."
)
def command(
    source: str, destination: Path, to: str, number_type: str | None, method: str, calibration: Path | None
) -> None:
    """Write the model SRC as DST, a new folder or .gguf file; where the type stays, every byte stays.

    DST must not exist. Weights with NaN or Inf are refused. The tokenizer goes along. A packed SRC becomes bf16 where
    no type is named; a packed DST that was not finished is taken up where it was left.

    \b
    coterie convert Mixtral-8x7B-Instruct-v0.1 mixtral-consolidated --to mistral
    coterie convert Mixtral-8x7B-Instruct-v0.1 mixtral.Q8_0.gguf --to gguf --type q8_0
    coterie convert Mixtral-8x7B-Instruct-v0.1 mixtral-int4 --to packed --type int4
    coterie convert demo demo-plain --to huggingface --type bf16
    """
    from coterie.checkpoint.convert import convert

    model = resolve_model(source)
    ids = None if calibration is None else _calibration_ids(model, calibration)
    with progress("converting") as report:
        convert(
            model,
            destination,
            to=to,
            type=number_type,
            progress=report,
            method=method,
            calibration=ids,
            notice=note,
        )
    written = [destination] if destination.is_file() else destination.iterdir()
    size = sum(path.stat().st_size for path in written)
    note(f"wrote {destination} ({human_bytes(size)})")


def _calibration_ids(model: Path, text: Path) -> list[int]:
    """The first tokens of a text (.txt, .jsonl or .jsonl.gz), as many as are used."""
    from coterie.checkpoint.calibrate import CALIBRATION_TOKENS
    from coterie.checkpoint.vocabulary import require_vocabulary
    from coterie.train.texts import read_texts

    tokenizer, _ = require_vocabulary(model)
    ids: list[int] = []
    for piece in read_texts(text):
        ids += tokenizer.encode(piece)
        if len(ids) >= CALIBRATION_TOKENS:
            break
    return ids[:CALIBRATION_TOKENS]
