"""Time to load a bfloat16 folder from a cold page cache, beside `cat` of its files, in turn.

Writes a Mixtral folder of that many layers (4: 12.1 GB in shards with one tensor per expert), uses it, removes it.
Needs that much free disk and memory. The page cache of the files is dropped before each run (posix_fadvise).
"""

import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peers import arguments, interleave, machine, mixtral_config, report

from coterie import CoterieError, ModelConfig
from coterie.checkpoint.atomic import require_disk
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.model import Transformer
from coterie.sizes import parameters


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "coterie", "benchmarks")
    parser.add_argument("--folder", type=Path, default=cache, help=f"on the disk to be measured (default: {cache})")
    parser.add_argument("--keep", action="store_true", help="leave the files for the next time")
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: 4)")
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    args = parser.parse_args(argv)
    target = args.folder / f"mixtral-{args.layers}-layers-{args.scale}"
    try:
        if not target.exists():
            _write(target, mixtral_config(args.layers, args.scale))
        _measure(target, args.rounds)
    except CoterieError as e:
        sys.exit(f"{Path(__file__).name}: {e}")
    finally:
        if not args.keep:
            shutil.rmtree(target, ignore_errors=True)


def _measure(target: Path, rounds: int) -> None:
    files = sorted(target.glob("*.safetensors"))

    def ours() -> float:
        _drop(files)
        start = time.perf_counter()
        model = load_model(target, dtype="bfloat16", device="cpu")
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

    size = sum(f.stat().st_size for f in files)
    print(f"{size / 1e9:.1f} GB in {len(files)} files, {machine()}")
    report("load, cold", "seconds", interleave({"coterie load": ours, "cat": cat}, rounds), "coterie load", False)


def _write(target: Path, config: ModelConfig) -> None:
    require_disk(target, 2 * parameters(config).total)
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
