"""The training step of `train_step.py` as each side's users meet it: in turns, every time in a process of its own.

A turn starts transformers with each of two experts backends under autocast, and us in bfloat16 with float32 masters;
each takes seven steps, of which the median of the last six counts. In `train_step.py` one process of transformers goes
on for minutes, which is faster for it on some machines. The ratio of a turn is ours to its faster backend.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from peers import arguments, machine
from train_step import Ours, Theirs, step_config, step_model

from coterie.train.memory import keep_freed_memory

SIDES = ("eager", "grouped_mm", "ours")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    parser.add_argument(
        "--steps", type=int, default=7, help="of each side in a turn, the first not counted (default: 7)"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        print(tokens_a_second(args.side, args.scale, args.steps))
        return
    print(f"training step, bfloat16, tokens/s; {machine()}")
    turns = []
    for _ in range(args.rounds):
        rates = {side: _alone(side, args.scale, args.steps) for side in SIDES}
        turns.append(rates["ours"] / max(rates["eager"], rates["grouped_mm"]))
        print("  ".join(f"{side} {rate:,.0f}" for side, rate in rates.items()), f" ratio {turns[-1]:.2f}", flush=True)
    print(f"ratio over {len(turns)} turns: median {statistics.median(turns):.2f}, {min(turns):.2f} to {max(turns):.2f}")


def tokens_a_second(side: str, scale: int, steps: int) -> float:
    config = step_config(scale)
    ids = torch.randint(0, config.vocab_size, (8, 512), generator=torch.Generator().manual_seed(0))
    step = _ours(scale, ids) if side == "ours" else _theirs(side, scale, ids)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step.step()
        seconds.append(time.perf_counter() - start)
    return ids.numel() / statistics.median(seconds[1:])


def _ours(scale: int, ids: torch.Tensor) -> Ours:
    keep_freed_memory()  # as `coterie train` does
    return Ours(step_model(step_config(scale), torch.bfloat16), ids)


def _theirs(backend: str, scale: int, ids: torch.Tensor) -> Theirs:
    theirs = Theirs(step_model(step_config(scale), torch.float32), ids)
    theirs.backend, theirs.is_bf16 = backend, True
    return theirs


def _alone(side: str, scale: int, steps: int) -> float:
    command = [sys.executable, __file__, "--side", side, "--scale", str(scale), "--steps", str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
