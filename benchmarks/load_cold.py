"""Time to load a bfloat16 folder from a cold page cache, beside `cat` of its files, in turn.

    python benchmarks/load_cold.py --folder /path/with/14GB/free [--layers 4] [--rounds 3]

Writes a Mixtral folder of that many layers once (4 layers: 12.1 GB in per-expert shards) and leaves it there.
The page cache of the files is dropped before each run (posix_fadvise).
"""

import argparse
import gc
import os
import subprocess
import time
from pathlib import Path

import torch
from peers import interleave, machine, report

from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.config import ModelConfig
from coterie.model import Transformer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    target = args.folder / f"mixtral-{args.layers}-layers"
    if not target.exists():
        _write(target, args.layers)
    files = sorted(target.glob("*.safetensors"))
    size = sum(f.stat().st_size for f in files)

    def ours() -> float:
        _drop(files)
        start = time.perf_counter()
        model = load_model(target, dtype="bfloat16")
        seconds = time.perf_counter() - start
        del model
        gc.collect()
        return seconds

    def cat() -> float:
        _drop(files)
        start = time.perf_counter()
        with open(os.devnull, "wb") as null:
            subprocess.run(["cat", *map(str, files)], stdout=null, check=True)
        return time.perf_counter() - start

    print(f"{size / 1e9:.1f} GB in {len(files)} files, {machine()}")
    report("load, cold", "seconds", interleave({"coterie load": ours, "cat": cat}, args.rounds), "coterie load", False)


def _write(target: Path, layers: int) -> None:
    config = ModelConfig(num_hidden_layers=layers)
    model = Transformer(config, torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
    save_huggingface(target, config, model.tensors(), dtype="bfloat16")


def _drop(files: list[Path]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


if __name__ == "__main__":
    main()
