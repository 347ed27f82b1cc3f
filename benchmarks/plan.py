"""What `coterie plan` expects beside what `coterie train` then takes: the peak of memory, and seconds a step.

Each round plans the recipe and trains it for some steps, each in a process of its own, planning first in every second
round; medians of both and their ratio, which should be within 10 % of 1. Without --recipe a small one on a text that is
made up. The first steps of a run are left out of its time: they allocate.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import arguments

_RECIPE = """
[model]
hidden_size = 256
intermediate_size = 224
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 2
num_local_experts = 8
max_position_embeddings = 512
tie_word_embeddings = true
[data]
files = ["{text}"]
tokenizer = {{ vocab_size = 2048 }}
[train]
steps = 1000
batch = 8
sequence = 512
[run]
out = "{out}"
eval_every = 1000
save_every = 1000
"""
_LEFT_OUT = 3  # first steps
_TINY = {
    "hidden_size = 256": "hidden_size = 32",
    "intermediate_size = 224": "intermediate_size = 32",
    "layers = 6": "layers = 2",
    "vocab_size = 2048": "vocab_size = 512",
    "sequence = 512": 'sequence = 64\ndtype = "float32"',
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--recipe", type=Path, help="plan and train this one, in a folder that is removed after")
    parser.add_argument("--steps", type=int, default=40, help="trained in a round (default: 40)")
    parser.add_argument("--tiny", action="store_true", help="a recipe so small that its figures mean nothing")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = args.recipe or write_recipe(folder, tiny=args.tiny)
        expected, found = [], []
        for i in range(args.rounds + 1):  # the first one warms up, and makes the vocabulary and the tokens
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
            pair = [(expected, lambda: planned(recipe)), (found, lambda: trained(recipe, folder / "run", args.steps))]
            for figures, run in pair if i % 2 else reversed(pair):
                value = run()
                if i:
                    figures.append(value)
    for key, unit, scale in (("seconds", "s a step", 1.0), ("bytes", "MB at the highest", 1e6)):
        plan, train = (statistics.median(f[key] for f in figures) / scale for figures in (expected, found))
        print(f"{key:<8} planned {plan:10.3f}  trained {train:10.3f} {unit:<18} planned / trained {plan / train:.2f}")


def write_recipe(folder: Path, *, tiny: bool) -> Path:
    """The recipe above and 2 MB of made-up words for it."""
    random.seed(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(5000)]
    rate = [1 / (i + 1) for i in range(len(words))]
    lines = (" ".join(random.choices(words, rate, k=12)) for _ in range(3000 if tiny else 30_000))
    (folder / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    text = _RECIPE.format(text=folder / "words.txt", out=folder / "run")
    for old, new in _TINY.items() if tiny else ():
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def planned(recipe: Path) -> dict[str, float]:
    """Of the first phase of the recipe, which is the one that is trained."""
    document = json.loads(_run("plan", str(recipe), "--json")[0])
    return {"seconds": document["phases"][0]["seconds"], "bytes": document["memory"]["peak"]}


def trained(recipe: Path, out: Path, steps: int) -> dict[str, float]:
    """The median step of a run from scratch, and the peak of its process."""
    (out / "log.jsonl").unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    _, peak = _run("train", str(recipe), "--out", str(out), "--steps", str(steps))
    lines: list[dict[str, Any]] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    times = [b["seconds"] - a["seconds"] for a, b in zip(lines[_LEFT_OUT:-1], lines[_LEFT_OUT + 1 :], strict=True)]
    return {"seconds": statistics.median(times), "bytes": peak}


def _run(*words: str) -> tuple[str, float]:
    """What the command printed, and the bytes its process had at most (this one is small, so its own do not count)."""
    child = subprocess.Popen([sys.executable, "-m", "coterie", *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{Path(__file__).name}: coterie {words[0]} ended with {child.returncode}")
    return out, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
