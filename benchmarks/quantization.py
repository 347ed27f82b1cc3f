"""What fewer bits cost: perplexity on held-out text for each type, method and calibration, as a table and a picture.

Every row is the model as `coterie.load` would run it, quantised in memory; all read the same windows, so that small
differences are not noise of the text. `$COTERIE_DATA/text` holds NAME.valid.jsonl.gz to score and NAME.train.jsonl.gz
to calibrate with. The base is the model's own plain weights. A packed model, which the one that ships is, is made plain
first (float32, exactly what it multiplies by): then what its packing cost is not seen, and its own type costs next to
nothing. For all of it give --model the folder that it was trained to: runs/demo/model.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import coterie
from coterie.checkpoint.calibrate import CALIBRATION_TOKENS, measure_importance
from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.hub import find_model
from coterie.checkpoint.packed import is_packed
from coterie.checkpoint.quantise import quantise_checkpoint
from coterie.eval.perplexity import score_tokens
from coterie.model import Transformer
from coterie.quant.formats import Format
from coterie.quant.layers import install
from coterie.quant.recipe import TYPES, Recipe
from coterie.quant.report import require_bits
from coterie.tokenizer import Tokenizer
from coterie.train.texts import read_texts

METHODS = {"rtn": ("rtn", False), "rtn + text": ("rtn", True), "hqq": ("hqq", False), "hqq + text": ("hqq", True)}
COLOURS = dict(zip(METHODS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))
OTHERS = (
    *(Format(6), Format(6, group_units=2), Format(6, 16, scales="super")),
    *(Format(5), Format(5, scales="f16_offset"), Format(5, scales="super_min")),
    *(Format(4), Format(4, scales="f16_offset"), Format(4, group_units=2, scales="f16_offset")),
    *(Format(4, scales="super_min"), Format(4, 16, scales="super")),
    *(Format(3), Format(3, scales="f16_offset"), Format(3, group_units=2, scales="f16_offset")),
    *(Format(3, scales="super_min"), Format(3, 16, scales="super"), Format(3, 16, scales="super_nibble")),
    *(Format(2, scales="f16_offset"), Format(2, scales="super_min"), Format(2, 16, scales="super_nibble")),
)
Row = tuple[
    str, str, float, float, int, float
]  # type, method, bits of the experts, of all, bytes, change of perplexity


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--windows", type=int, default=16, help="windows of each text to score (default: 16)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window (default: 2048)")
    parser.add_argument("--types", default=",".join(TYPES), help=f"which types (default: {','.join(TYPES)})")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"which methods (default: {','.join(METHODS)})")
    parser.add_argument(
        "--formats", action="store_true", help="other formats for the experts beside those of the types"
    )
    parser.add_argument("--svg", type=Path, help="write a picture of the table")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        rows = measure(plain_folder(find_model(args.model), Path(made, "plain")), args)
    if args.svg:
        args.svg.write_text(picture(rows), encoding="utf-8")


def plain_folder(path: Path, made: Path) -> Path:
    """The model itself, or `made` with its weights plain."""
    if not path.is_dir() or not is_packed(path):
        return path
    convert(path, made, to="huggingface", type="f32")
    return made


def measure(path: Path, args: argparse.Namespace) -> list[Row]:
    folder = Path(os.environ["COTERIE_DATA"], "text")
    lm = coterie.load(path, device="cpu")
    texts = [_ids(lm.tokenizer, path, 10**9) for path in sorted(folder.glob("*.valid.jsonl.gz"))]
    train = sorted(folder.glob("*.train.jsonl.gz"))
    sample = [_ids(lm.tokenizer, path, CALIBRATION_TOKENS // len(train)) for path in train]

    def nats(model: Transformer) -> float:
        scores = [score_tokens(model, ids, window=args.length, max_windows=args.windows) for ids in texts]
        return sum(s.nats for s in scores) / sum(s.n_tokens for s in scores)

    plain = nats(lm.model)
    print(f"{args.model}, {lm.model.dtype}: perplexity {math.exp(plain):.3f} on {len(texts)} texts\n")
    checkpoint = open_checkpoint(path)
    importance = measure_importance(checkpoint, [i for ids in sample for i in ids])
    if starved := importance.starved():
        print(f"too few tokens for {', '.join(starved)}")
    print("| experts | method | bits per weight, experts | all | MB | perplexity |\n|---|---|---:|---:|---:|---:|")
    rows: list[Row] = []
    recipes = [Recipe.of(kind) for kind in args.types.split(",")]
    if args.formats:
        recipes = [Recipe(format.label, experts=format) for format in OTHERS]
    for recipe in recipes:
        kind = recipe.type
        for name in args.methods.split(","):
            method, is_weighted = METHODS[name]
            recipe = replace(recipe, method=method)
            parts = quantise_checkpoint(checkpoint, recipe, importance if is_weighted else None)
            model = install(Transformer(checkpoint.config, torch.float32, "meta"), parts)
            found = require_bits(model, recipe)
            experts = next(b.bits_per_weight for b in found if b.part == "experts")
            total, n = sum(b.nbytes for b in found), sum(b.n_weights for b in found)
            change = math.exp(nats(model) - plain) - 1
            rows.append((kind, name, experts, 8 * total / n, total, change))
            print(f"| {kind} | {name} | {experts:.2f} | {8 * total / n:.2f} | {total / 1e6:.2f} | {change:+.2%} |")
    return rows


def _ids(tokenizer: Tokenizer, path: Path, n: int) -> list[int]:
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    tokens = (i for text in read_texts(path) for i in (*tokenizer.encode(text), *eos))
    return list(islice(tokens, n))


def picture(rows: Sequence[Row]) -> str:
    """Bits of the experts against the change of perplexity, on a logarithmic scale from 0.01 % to 100 %."""
    width, height, left, top, right, bottom = 720, 420, 70, 20, 700, 370
    bits = [row[2] for row in rows]
    low, high = math.floor(min(bits)), math.ceil(max(bits))

    def at(x: float, change: float) -> tuple[float, float]:
        y = (math.log10(min(max(change, 1e-4), 1)) + 4) / 4
        return left + (x - low) / max(1, high - low) * (right - left), bottom - y * (bottom - top)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for power in range(-4, 1):
        _, y = at(low, 10.0**power)
        out.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * 10.0**power:g} %</text>')
    for x in range(low, high + 1):
        out.append(f'<text x="{at(x, 1)[0]:.1f}" y="{bottom + 20}" text-anchor="middle">{x}</text>')
    out.append(
        f'<text x="{(left + right) / 2}" y="{height - 10}" text-anchor="middle">bits per weight of the experts</text>'
    )
    out.append(f'<text x="{right}" y="{top + 12}" text-anchor="end">perplexity above that of the plain weights</text>')
    for i, (name, colour) in enumerate(COLOURS.items()):
        points = [at(row[2], row[5]) for row in rows if row[1] == name]
        if points:
            path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
            out.append(f'<text x="{right - 110}" y="{top + 36 + 18 * i}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    main()
