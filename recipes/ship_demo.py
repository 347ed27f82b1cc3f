"""Make the folder of the model that ships from a finished run of demo.toml: packed to 8 bits, with its card.

python recipes/ship_demo.py runs/demo src/coterie/demo

COTERIE_DATA names the folder of the training text. The card's bits per byte are those of the trained weights, from the
end of the run; what packing costs is measured here, on the same windows with both, the trained weights in float32.
"""

import gzip
import json
import lzma
import os
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import coterie
from coterie.checkpoint.convert import convert
from coterie.checkpoint.verify import write_manifest
from coterie.eval.perplexity import score_tokens
from coterie.train.recipe import read_recipe
from coterie.train.texts import read_texts

TYPE, WINDOWS, LENGTH = "int8", 16, 2048
LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "python": "Python"}


def main() -> None:
    run, target = Path(sys.argv[1]), Path(sys.argv[2])
    scores = json.loads((run / "scores.json").read_text())
    lines = (run / "log.jsonl").read_text().splitlines()
    log = list({record["step"]: record for record in map(json.loads, lines)}.values())
    with TemporaryDirectory() as made:
        packed = Path(made) / "demo"
        convert(run / "model", packed, to="packed", type=TYPE)
        losses = packing_losses(run / "model", packed)
        for path in sorted(packed.iterdir()):
            shutil.copy2(path, target / path.name)
    notes = run / "notes.md"  # how these weights differ from what the recipe alone would give, if they do
    text = notes.read_text(encoding="utf-8") if notes.exists() else "`coterie train recipes/demo.toml`, start to end: "
    (target / "README.md").write_text(card(scores, log, text, losses), encoding="utf-8")
    write_manifest(target)


def packing_losses(plain: Path, packed: Path) -> dict[str, float]:
    """Of each valid text, and of "all" windows together: by how much bits per byte grow, as a share."""
    before, after = coterie.load(plain, device="cpu", dtype="f32"), coterie.load(packed, device="cpu")
    eos = before.tokenizer.eos_id
    nats = {}
    for key in LANGUAGES:
        texts = read_texts(Path(os.environ["COTERIE_DATA"], "text", f"{key}.valid.jsonl.gz"))
        ids = [i for text in texts for i in (*before.tokenizer.encode(text), eos) if i is not None]
        models = (before.model, after.model)
        nats[key] = [score_tokens(m, ids, window=LENGTH, max_windows=WINDOWS).nats for m in models]
    nats["all"] = [sum(column) for column in zip(*nats.values(), strict=True)]
    return {key: new / old - 1 for key, (old, new) in nats.items()}


def card(scores: dict[str, Any], log: list[dict[str, Any]], notes: str, losses: dict[str, float]) -> str:
    rows = "\n".join(
        f"| {name} | {scores[f'{key}.valid']['bits_per_byte']:.3f} | {xz(key):.2f} |" for key, name in LANGUAGES.items()
    )
    total = _total_shares(scores)
    shares = "\n".join(f"| {i} | " + " | ".join(f"{s:.2f}" for s in layer) + " |" for i, layer in enumerate(total))
    flat = [s for layer in total for s in layer]
    plan = read_recipe(Path(__file__).with_name("demo.toml"))
    tokens = len(log) * plan.train.batch * plan.sequence_plan()[0][1]
    return CARD.format(
        rows=rows, shares=shares, low=min(flat), high=max(flat), steps=len(log), tokens=tokens / 1e6,
        minutes=log[-1]["seconds"] / 60, notes=notes, loss=statistics.mean(r["loss"] for r in log[-20:]),
        packing=losses["all"], worst=max(losses.values()), windows=WINDOWS,
    )  # fmt: skip


def xz(key: str) -> float:
    """Bits a byte that `xz -9` needs for the texts of a valid file, one after another."""
    with gzip.open(Path(os.environ["COTERIE_DATA"], "text", f"{key}.valid.jsonl.gz"), "rt", encoding="utf-8") as lines:
        text = "\n".join(json.loads(line)["text"] for line in lines).encode()
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def _total_shares(scores: dict[str, Any]) -> list[list[float]]:
    """Loads over all valid files together, by tokens, as multiples of the fair share."""
    n = sum(s["tokens"] for s in scores.values())
    layers = range(len(next(iter(scores.values()))["shares"]))
    return [[sum(s["shares"][i][e] * s["tokens"] for s in scores.values()) / n for e in range(8)] for i in layers]


CARD = """---
library_name: coterie
license: apache-2.0
language: [en, fr, de, es, it]
---

# The model that ships with coterie

A small Mixtral: 8 experts, top 2, grouped-query attention, rotary embedding, SwiGLU, a byte-fallback BPE vocabulary of
8,192 pieces, 6 layers of width 256, tied embeddings, context 2,048. 11.5 M parameters, of which 5.4 M are used for a
token; 8 bits each. It writes novel-like prose in five languages and Python-like code. It knows nothing, is not tuned for
chat, and its text should be taken for what it is: a demonstration that every part works.

## Quality

Bits per byte on whole files that share no work with the training text, in windows of 2,048 tokens that start with BOS
(`xz -9` of the same files beside it):

| text | bits per byte | xz -9 |
|---|---:|---:|
{rows}

## Packing

The weights were trained in bfloat16 and ship packed to 8 bits (`int8`, round to nearest; norms and routers in float32):
12 MB instead of 23. The figures above are those of the trained weights. Packed, and with activations of 8 bits, the model
needs {packing:+.4%} bits per byte beside them in float32, at most {worst:+.4%} on one of the six texts ({windows} windows of
each). To get a plain folder, which transformers and others load: `coterie convert demo FOLDER --to huggingface --type bf16`.

## Routing

Load of each expert on all valid text, as a multiple of its fair share (lowest {low:.2f}, highest {high:.2f}):

| layer | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{shares}

## Recipe

{notes}{steps:,} steps, {tokens:.1f} M tokens, {minutes:.0f} minutes on two cores in bfloat16 with float32 masters;
`docs/demo.md` says why the recipe is what it is. Final training loss {loss:.2f} nats per token.

## Training text and licences

| text | bytes | source and licence |
|---|---:|---|
| English, French, German, Spanish, Italian prose | 48.9 M | novels of the European Literary Text Collection (ELTeC) and classic children's books: public domain; ELTeC's mark-up, CC BY 4.0, was taken off. Stories of the African Storybook initiative: CC BY 4.0, by their authors |
| Python | 7.3 M | modules of the CPython 3.11.7 standard library: PSF License 2.0, Copyright Python Software Foundation |

The weights are released under Apache-2.0 with the rest of coterie.
"""


if __name__ == "__main__":
    main()
