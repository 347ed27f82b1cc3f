"""A training step beside transformers' Mixtral: tokens a second, share of the matrix peak, loss curve.

49.6 million parameters, 8 experts of which 2 are used, 8 sequences of 512 tokens; forward, backward, clipping, AdamW.
Ours are the pieces of `coterie train`: model, objective, optimizer; in "bf16" the model is bfloat16 and its masters are
float32, beside transformers under autocast, whose weights are float32 too. transformers has a process of its own, with
memory as its users have it; `--same-allocator` gives it our setting (`coterie.train.memory`).
The peak is the best square product of torch in the same rounds. On a machine that others use too, `--clock cpu` with
one thread counts processor time. The curve: float32, the same weights, data, AdamW and
clipping, no balancing loss (transformers has the tokens of all layers in one heap, which is another number).
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peers import arguments, interleave, machine, mixtral_of_transformers, report, users_adamw
from torch import Tensor, nn

from coterie.config import ModelConfig
from coterie.kernels import sparse_training, training_products
from coterie.model import Transformer
from coterie.train.initialise import initialise
from coterie.train.memory import keep_freed_memory
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Balance

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: as it chose)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what is counted (default: wall)")
    parser.add_argument("--same-allocator", action="store_true", help="transformers keeps freed memory as we do")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step (default: 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--curve", type=int, default=50, help="steps of the loss curves that are compared; 0: none")
    args = parser.parse_args(argv)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    if not args.serve_peer or args.same_allocator:
        keep_freed_memory()
    config = step_config(args.scale)
    ids = torch.randint(0, config.vocab_size, (args.batch, args.length), generator=torch.Generator().manual_seed(0))
    if args.serve_peer:
        _serve(Theirs(step_model(config, torch.float32), ids), clock)
        return
    ours = {name: Ours(step_model(config, dtype), ids) for name, dtype in TYPES.items()}
    n_parameters = sum(p.numel() for p in ours["fp32"].model.parameters())
    print(f"{n_parameters / 1e6:.1f} M parameters, {args.batch} x {args.length} tokens a step, {machine()}")
    if args.rounds:
        options = sys.argv[1:] if argv is None else list(argv)
        _speed(config, ours, ids, args.rounds, clock, options)
    if args.curve:
        _curve(config, min(2, args.batch), min(128, args.length), args.curve)


def step_config(scale: int) -> ModelConfig:
    return ModelConfig(
        hidden_size=256 // scale,
        intermediate_size=896 // scale,
        num_hidden_layers=8 if scale == 1 else 2,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=8192 // scale,
    )


def step_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    model = Transformer(config, dtype)
    initialise(model, std=0.02, seed=0)
    return model


class Ours:
    """The pieces that `coterie train` is made of, around one batch."""

    def __init__(self, model: Transformer, ids_BS: Tensor, load: float = 0.01):
        self.model, self.ids_BS, self.lr = model, ids_BS, LR
        self.objective = Objective(model, Balance(load=load, convention="transformers", z=0.0))
        self.optimizer = MasterOptimizer(model, betas=BETAS, weight_decay=DECAY)
        self._generator = torch.Generator().manual_seed(0)

    def step(self) -> float:
        targets_BS = torch.cat((self.ids_BS[:, 1:], torch.full_like(self.ids_BS[:, :1], -1)), 1)
        n_tokens = int((targets_BS >= 0).sum())
        self.objective.start_step()
        self.objective.backward(self.ids_BS, targets_BS, n_tokens=n_tokens, share=1.0, generator=self._generator)
        self.optimizer.step(self.lr, CLIP)
        return self.objective.measures()["loss"]


class Theirs:
    """transformers' model on weights of its own, with the loop of its users."""

    def __init__(self, model: Transformer, ids_BS: Tensor, load: float = 0.01):
        self.ids_BS, self.lr, self.backend, self.is_bf16 = ids_BS, LR, "eager", False
        self.model = mixtral_of_transformers(copy.deepcopy(model)).train()
        self.model.config.output_router_logits = load > 0
        self.model.router_aux_loss_coef = load
        self.optimizer = users_adamw(self.model, lr=LR, betas=BETAS, decay=DECAY)

    def step(self) -> float:
        self.model.set_experts_implementation(self.backend)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            loss = self.model(input_ids=self.ids_BS, labels=self.ids_BS).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def _speed(
    config: ModelConfig,
    ours: dict[str, Ours],
    ids: Tensor,
    rounds: int,
    clock: Callable[[], float],
    options: list[str],
) -> None:
    peer = Peer(options)
    inside = {name: Inside(clock) for name in TYPES}
    sides: dict[str, Callable[[], float]] = {}
    for name in TYPES:
        sides[f"ours {name}"] = lambda name=name: _rate(lambda: inside[name].of(ours[name].step), ids, clock)  # type: ignore[misc]
        for backend in ("eager", "grouped_mm"):
            sides[f"transformers {backend} {name}"] = lambda b=backend, n=name: ids.numel() / peer.seconds(b, n)  # type: ignore[misc]
    for name in TYPES:
        sides[f"peak {name}"] = lambda name=name: _peak(TYPES[name], clock)  # type: ignore[misc]
    try:
        found = interleave(sides, rounds)
    finally:
        peer.close()
    peers = {name: rate for name, rate in found.items() if name.startswith("transformers")}
    for name in TYPES:
        allowed = {side: rate for side, rate in peers.items() if name == "bf16" or side.endswith(name)}
        report(f"training step, {name}", "tokens/s", {f"ours {name}": found[f"ours {name}"]} | allowed, f"ours {name}")
        per_token = 3 * 2 * 3 * config.hidden_size * config.intermediate_size  # forward and twice that back
        work = ids.numel() * config.num_experts_per_tok * config.num_hidden_layers * per_token / 1e9
        peak, (products, block) = found[f"peak {name}"], (work / seconds for seconds in inside[name].medians())
        print(f"matrix peak, {name}: {peak:.0f} GFLOP/s; the experts' products reach {products / peak:.0%} of it, "
              f"with all that lies between them {block / peak:.0%}\n", flush=True)  # fmt: skip


def _rate(step: Callable[[], float], ids: Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return ids.numel() / (clock() - start)


def _serve(theirs: Theirs, clock: Callable[[], float]) -> None:
    """Steps on demand: a line with the backend and the type in, the seconds of a step out."""
    for line in sys.stdin:
        theirs.backend, name = line.split()
        theirs.is_bf16 = name == "bf16"
        start = clock()
        theirs.step()
        print(clock() - start, flush=True)


class Peer:
    """transformers in a process of its own."""

    def __init__(self, options: list[str]):
        command = [sys.executable, __file__, *options, "--serve-peer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, backend: str, name: str) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{backend} {name}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _peak(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """GFLOP/s of the fastest of a few products of 1,024 x 1,024 matrices."""
    a, out, best = torch.randn(1024, 1024).to(dtype), torch.empty(1024, 1024, dtype=dtype), float("inf")
    for _ in range(20):
        start = clock()
        torch.mm(a, a, out=out)
        best = min(best, clock() - start)
    return 2 * 1024**3 / best / 1e9


class Inside:
    """Seconds of the matrix products in the sparse blocks of each step, and of those blocks as a whole.

    The native products of bf16 are one call with what lies between them, so all of that counts as products there.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.seconds: list[list[float]] = []

    def of(self, step: Callable[[], float]) -> float:
        self.seconds.append([0.0, 0.0])
        places: list[tuple[Any, str, int]] = [(torch, "mm", 0)]  # nothing else in a step calls it by this name
        places += [(training_products, name, 0) for name in ("sparse_ffn", "sparse_ffn_backward")]
        functions = (sparse_training._SparseFFN, sparse_training._NativeFFN)
        places += [(function, name, 1) for function in functions for name in ("forward", "backward")]
        before = [getattr(owner, name) for owner, name, _ in places]
        for (owner, name, part), function in zip(places, before, strict=True):
            timed = self._timed(function, part)
            setattr(owner, name, staticmethod(timed) if part else timed)
        try:
            return step()
        finally:
            for (owner, name, part), function in zip(places, before, strict=True):
                setattr(owner, name, staticmethod(function) if part else function)

    def medians(self) -> list[float]:
        """The first step warms up."""
        return [statistics.median(column) for column in zip(*self.seconds[1:], strict=True)]

    def _timed(self, function: Callable[..., Any], part: int) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = self._clock()
            try:
                return function(*args, **options)
            finally:
                self.seconds[-1][part] += self._clock() - start

        return timed


def _curve(config: ModelConfig, batch: int, length: int, steps: int) -> None:
    """Rows that are learnt: a few hundred words, each followed by one of four; the rate warms up over 100 steps.

    transformers' two backends are compared with each other too: at a larger rate rounding decides which of two experts
    that nearly tie a token meets, and they part as far from each other as from us.
    """
    g, n_words = torch.Generator().manual_seed(1), min(256, config.vocab_size)
    follows = torch.randint(0, n_words, (n_words, 4), generator=g)
    model, ids = step_model(config, torch.float32), torch.zeros(batch, length, dtype=torch.int64)
    sides: list[Any] = [side(copy.deepcopy(model), ids, load=0.0) for side in (Ours, Theirs, Theirs)]
    sides[2].backend = "grouped_mm"
    losses = []
    for step in range(steps):
        rows = [torch.randint(0, n_words, (batch,), generator=g)]
        while len(rows) < length:
            rows.append(follows[rows[-1], torch.randint(0, 4, (batch,), generator=g)])
        for side in sides:
            side.ids_BS, side.lr = torch.stack(rows, 1), LR * min(1.0, (step + 1) / 100)
        losses.append([side.step() for side in sides])
    far, control = (max(abs(row[i] - row[1]) for row in losses) for i in (0, 2))
    print(f"loss over {steps} steps in float32: ours {losses[0][0]:.6f} -> {losses[-1][0]:.6f}, transformers "
          f"{losses[0][1]:.6f} -> {losses[-1][1]:.6f}, largest difference {far:.1e} "
          f"(between its own backends {control:.1e})")  # fmt: skip


if __name__ == "__main__":
    main()
