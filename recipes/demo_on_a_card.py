"""Train recipes/demo.toml on a CUDA card whose machine has neither the texts nor this package: larger steps, and more.

python recipes/demo_on_a_card.py prepare FOLDER        here: the tokens of the recipe's texts, 37 MB
python recipes/demo_on_a_card.py train FOLDER OUT      there, with PYTHONPATH=src: weights, scores and log go to OUT
python recipes/demo_on_a_card.py finish FOLDER OUT RUN here: RUN as `coterie train` leaves one, for ship_demo.py

`train` times a few steps first and takes as many as fit `--seconds`. The weights are written in files below 16 MB.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from coterie.config import ModelConfig
from coterie.eval.perplexity import score_tokens
from coterie.model import Transformer
from coterie.train.batches import Batches
from coterie.train.loop import Trainer
from coterie.train.recipe import Recipe, read_recipe
from coterie.train.tokens import TokenFile

RECIPE = Path(__file__).parent / "demo.toml"
TIMED, MOST_BYTES = 40, 14 << 20
WEIGHTS = (0.15, 0.15, 0.15, 0.15, 0.15, 0.25)  # four times the tokens: Python's come nine times, the others four


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "finish"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", type=Path, nargs="*")
    parser.add_argument("--batch", type=int, default=32, help="rows of 512 tokens of a step (default: 32)")
    parser.add_argument("--seconds", type=float, default=150, help="of training (default: 150)")
    parser.add_argument("--most-steps", type=int, default=6000, help="however fast they are (default: 6000)")
    args = parser.parse_args()
    if args.what == "prepare":
        prepare(args.folder)
    elif args.what == "train":
        train(args.folder, *args.more, batch=args.batch, seconds=args.seconds, most=args.most_steps)
    else:
        finish(args.folder, *args.more)


def prepare(folder: Path) -> None:
    """The recipe's own vocabulary is that of the model that ships."""
    from coterie.cli.train_data import prepare_tokens
    from coterie.cli.train_run import model_config
    from coterie.tokenizer.load import load_tokenizer

    plan, demo = read_recipe(RECIPE), Path(__file__).parents[1] / "src/coterie/demo"
    tokenizer = load_tokenizer(demo)
    config = model_config(plan, None, tokenizer, demo, torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"config": config.to_fields(), "train": [], "valid": []}
    for part, names in (("train", plan.data.files), ("valid", plan.data.valid)):
        for file in prepare_tokens(names, tokenizer, demo, folder / "cache"):
            np.save(folder / f"{file.name}.npy", np.asarray(file.ids[:], dtype=np.uint16))
            described[part].append({"name": file.name, "bytes": file.n_bytes})
    shutil.rmtree(folder / "cache")
    (folder / "texts.json").write_text(json.dumps(described))


def train(folder: Path, out: Path, *, batch: int, seconds: float, most: int) -> None:
    described = json.loads((folder / "texts.json").read_text())
    texts, valid = ([_tokens(folder, entry) for entry in described[part]] for part in ("train", "valid"))
    config = ModelConfig.from_fields(described["config"], where=str(folder / "texts.json"))
    run = Path("/tmp/demo_on_a_card")
    shutil.rmtree(run, ignore_errors=True)
    trial = _trainer(_recipe(TIMED, batch), config, texts, run / "trial")
    trial.run(until=TIMED // 2)
    started = time.perf_counter()
    trial.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    each = (time.perf_counter() - started) / (TIMED - TIMED // 2)
    steps = min(most, int(seconds / each))
    print(f"{each * 1e3:.1f} ms a step, so {steps} steps of {batch * 512:,} tokens", flush=True)
    del trial
    trainer = _trainer(_recipe(steps, batch), config, texts, run / "whole")
    trainer.run()
    model = trainer.model.eval()
    scores = {}
    for file in valid:
        score = score_tokens(model, file.ids, window=2048, batch=8)
        bits = score.bits_per_byte(file.n_bytes / len(file.ids))
        scores[file.name] = {"bits_per_byte": bits, "tokens": score.n_tokens, "shares": score.shares()}
        print(f"{file.name}: {bits:.3f} bits per byte", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    shutil.copy(run / "whole" / "log.jsonl", out)
    _save(model, out)


def _tokens(folder: Path, entry: dict[str, Any]) -> TokenFile:
    return TokenFile(entry["name"], np.load(folder / f"{entry['name']}.npy"), entry["bytes"])


def _recipe(steps: int, batch: int) -> Recipe:
    plan = read_recipe(RECIPE)
    run = replace(plan.run, eval_every=10**9, save_every=10**9)
    data = replace(plan.data, weights=WEIGHTS)
    return replace(plan, train=replace(plan.train, steps=steps, batch=batch, dtype="bfloat16"), data=data, run=run)


def _trainer(plan: Recipe, config: ModelConfig, texts: list[TokenFile], out: Path) -> Trainer:
    t, phases = plan.train, plan.sequence_plan()
    tokens, bos = t.batch * phases[0][1], config.bos_token_id or 0
    batches = Batches(texts, WEIGHTS, phases, t.steps, tokens, bos, t.seed)
    out.mkdir(parents=True)

    def report(record: dict[str, Any]) -> None:
        if record["step"] % 200 == 0:
            print(f"step {record['step']}: {record['bits_per_byte']:.3f} bits per byte, {record['seconds']:.0f} s, "
                  f"busiest expert {record['max_vio']:+.2f}", flush=True)  # fmt: skip

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Trainer(plan, config, batches, torch.bfloat16, device, out, lambda model: {}, report)


def _save(model: Transformer, out: Path) -> None:
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in model.tensors().items():
        held = sum(t.numel() * t.itemsize for t in parts[-1].values())
        if held + tensor.numel() * tensor.itemsize > MOST_BYTES:
            parts.append({})
        parts[-1][name] = tensor.detach().cpu().contiguous()
    for i, part in enumerate(parts):
        save_file(part, out / f"weights-{i}.safetensors")


def finish(folder: Path, out: Path, run: Path) -> None:
    from coterie.cli.train_run import save_model

    config = ModelConfig.from_fields(json.loads((folder / "texts.json").read_text())["config"], where="texts.json")
    model = Transformer(config, torch.bfloat16)
    found = {name: t for path in sorted(out.glob("weights-*.safetensors")) for name, t in load_file(path).items()}
    for name, tensor in model.tensors().items():
        tensor.copy_(found.pop(name))
    assert not found, sorted(found)
    run.mkdir(parents=True, exist_ok=True)
    for name in ("scores.json", "log.jsonl"):
        shutil.copy(out / name, run)
    save_model(model, Path(__file__).parents[1] / "src/coterie/demo", run / "model")


if __name__ == "__main__":
    main()
