"""`coterie bench tune`: the tiles of the sparse block measured on this card and kept for it."""

from typing import TYPE_CHECKING, Any

import click

from coterie.cli.output import note, print_json, print_table, progress
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.bench.tune import Found

__all__ = ["command"]

_ROWS = "2,8,16,32,64,128,512,2048"


@click.command("tune")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--shape", metavar="D,F,E,K", help="Widths of model and experts, experts, experts a token, instead.")
@click.option("--rows", default=_ROWS, show_default=True, metavar="N,N...", help="Rows an expert, on average.")
@click.option("--dtype", type=click.Choice(["bf16", "f16", "f32"]), default="bf16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(model: str | None, shape: str | None, rows: str, dtype: str, as_json: bool) -> None:
    """Measure which tiles of the sparse block are the fastest on this card, and keep them for it.

    \b
      coterie bench tune mistralai/Mixtral-8x7B-v0.1
      coterie bench tune --shape 4096,14336,8,2 --rows 16,2048
    """
    numbers = _shape(model, shape)
    wanted = [float(n) for n in _integers("--rows", rows)]

    import torch

    from coterie.bench.tune import Work, all_best, entries, require_card
    from coterie.kernels import tiles
    from coterie.kernels.tiles import Shape

    device = require_card()
    types = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    card = tiles.card_of(device).name
    with torch.inference_mode(), progress("measuring tiles", unit="products") as report:
        work = Work(Shape(*numbers[:3]), numbers[3], types[dtype], device)
        found = list(all_best(work, wanted, report))
    kept = entries(work, found)
    path = tiles.write(card, kept)
    for f in found:
        for reason in f.refused:
            note(f"left out for {f.kind} of {f.rows:g} rows: {reason}")
    note(f"written to {path}")
    if as_json:
        print_json({"card": card, "path": str(path), "found": [_document(f) for f in found]})
    else:
        print_table([("product", "rows", "ms", "GB/s", "TFLOP/s", "tile"), *(_line(f) for f in found)], indent=0)


def _line(f: "Found") -> tuple[str, ...]:
    rates = f"{f.bytes_per_second / 1e9:.0f}", f"{f.operations_per_second / 1e12:.0f}"
    return f.kind, f"{f.rows:g}", f"{f.milliseconds:.3f}", *rates, _words(f)


def _words(f: "Found") -> str:
    t = f.tile
    if t.by == "torch":
        return "torch's grouped product"
    marks = [name for name, is_so in (("swap", t.swap), ("tma", t.tma), (f"{t.parts} parts", t.parts > 1)) if is_so]
    sides = f"{t.rows}x{t.columns}x{t.depth}, {t.warps} warps, {t.stages} stages, {t.per_sm} a processor"
    return ", ".join([sides, *marks])


def _document(f: "Found") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(f)


def _shape(model: str | None, shape: str | None) -> list[int]:
    if (model is None) == (shape is None):
        raise RequestError("bench tune takes a MODEL or --shape D,F,E,K, one of them; Mixtral 8x7B is 4096,14336,8,2")
    if model is not None:
        from coterie.checkpoint.folder import read_model_config
        from coterie.cli.model_argument import resolve_model

        config = read_model_config(resolve_model(model))
        if config.num_local_experts is None:
            raise RequestError(
                f"{model} is dense, and it is experts whose tiles are measured; name a mixture of experts"
            )
        return [config.hidden_size, config.intermediate_size, config.num_local_experts, config.num_experts_per_tok]
    numbers = _integers("--shape", str(shape))
    if len(numbers) != 4 or numbers[3] > numbers[2]:
        raise RequestError(f"--shape is {shape!r}, expected D,F,E,K with K at most E, such as 4096,14336,8,2")
    return numbers


def _integers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RequestError(f"{name} is {text!r}, expected whole numbers above 0 with commas between them")
    return numbers
