"""A training step on one CUDA card beside transformers' Mixtral: tokens a second, share of the matrix peak, memory.

4.1 billion parameters, 1.3 billion of them used by a token: 16 layers 2,048 wide, 8 experts of 4,864 of which 2 are
used; 16 sequences of 2,048 tokens; forward, backward, clipping, AdamW, the balancing loss. Ours are the pieces of
`coterie train`: bfloat16 weights with float32 masters and moments. transformers' side, with SDPA and torch's fused
AdamW, twice: everything in bfloat16 with its grouped experts, which is its fastest and has no masters, so half of our
memory traffic in an update; and as its users get float32 masters: float32 weights under autocast, whose experts it can
only multiply one by one. Where its activations do not fit, its step is cut into micro-batches. First a small model is
checked against float64 on the CPU. The peak is the best square product of torch in the same run. One side after the
other: both do not fit.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from card import is_missing, matrix_peak
from peers import machine, mixtral_of_transformers, users_adamw
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coterie.config import ModelConfig
from coterie.kernels import gpu_training
from coterie.model import Transformer
from coterie.sizes import active_parameters, parameters
from coterie.train.initialise import initialise
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Balance
from coterie.train.recompute import recompute_blocks
from coterie.train.telemetry import training_operations

LR, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="steps that are measured, after two (default: 4)")
    parser.add_argument("--layers", type=int, default=16, help="(default: 16)")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step (default: 16)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence (default: 2048)")
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    parser.add_argument("--recompute", action="store_true", help="ours keeps the inputs of blocks alone")
    parser.add_argument("--variants", action="store_true", help="also with cuDNN's attention, and experts one by one")
    parser.add_argument("--profile", action="store_true", help="which kernels take the time of a step of ours")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    args = parser.parse_args(argv)
    if is_missing():
        return
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, {machine()}", flush=True)
    check(device)
    config = _config(args.layers, args.scale)
    peak = matrix_peak()
    print(f"{parameters(config).total / 1e9:.2f} B parameters, {active_parameters(config).total / 1e9:.2f} B active, "
          f"{args.batch} x {args.length} tokens a step; matrix peak {peak / 1e12:.0f} TFLOP/s in bfloat16")  # fmt: skip
    print(f"  {'':<38} {'tokens/s':>9} {'TFLOP/s':>8} {'of peak':>8} {'GB':>6}", flush=True)
    show = _Table(args.batch * args.length, training_operations(config, args.length), peak)
    model = _model(config, device)
    ids = torch.randint(0, config.vocab_size, (args.batch, args.length), device=device)
    ours = Ours(recompute_blocks(model) if args.recompute else model, ids)
    mine = show("ours", _seconds(ours.step, args.rounds))
    if args.variants:
        for name, variant in (("ours, cuDNN's attention", _cudnn), ("ours, experts one by one", _one_by_one)):
            with variant():
                show(name, _seconds(ours.step, max(2, args.rounds // 2), warm_up=1))
    if args.profile:
        _profile(ours.step)
    ours.free()
    del ours
    if not args.no_peer:
        ratios = []
        for name, masters in (("transformers, bfloat16", False), ("transformers, float32 and autocast", True)):
            theirs, remark = _theirs(model, ids, args.rounds, masters=masters)
            ratios.append(show(name, theirs, remark)[0] / mine[0])
        print(f"ours / transformers: {ratios[0]:.2f} in bfloat16, {ratios[1]:.2f} where it too has float32 masters")


def _config(layers: int, scale: int) -> ModelConfig:
    return ModelConfig(
        hidden_size=2048 // scale, intermediate_size=4864 // scale, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, head_dim=128 // scale, num_local_experts=8, num_experts_per_tok=2,
        vocab_size=32000 // scale, max_position_embeddings=32768,
    )  # fmt: skip


def _model(config: ModelConfig, device: torch.device) -> Transformer:
    """Filled on the card: random numbers of the CPU would take longer than all else."""
    model = Transformer(config, torch.bfloat16, device)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.ndim == 1 else p.normal_(0.0, 0.02)
    return model


class Ours:
    """The pieces that `coterie train` is made of, around one batch."""

    def __init__(self, model: Transformer, ids_BS: Tensor, load: float = 0.01):
        self.model, self.ids_BS = model, ids_BS
        self.targets_BS = torch.cat((ids_BS[:, 1:], torch.full_like(ids_BS[:, :1], -1)), 1)
        self.n_tokens = len(ids_BS) * (ids_BS.shape[1] - 1)
        self.objective = Objective(model, Balance(load=load, convention="transformers", z=0.0))
        self.optimizer = MasterOptimizer(model, betas=BETAS, weight_decay=DECAY)
        self._generator = torch.Generator(ids_BS.device).manual_seed(0)

    def gradients(self) -> float:
        self.objective.start_step()
        self.objective.backward(
            self.ids_BS, self.targets_BS, n_tokens=self.n_tokens, share=1.0, generator=self._generator
        )
        return self.objective.measures()["loss"]

    def step(self) -> float:
        loss = self.gradients()
        self.optimizer.step(LR, CLIP)
        return loss

    def free(self) -> None:
        """All but the weights."""
        self.optimizer.forget_gradients()
        del self.objective, self.optimizer, self.model
        gc.collect()
        torch.cuda.empty_cache()


class Theirs:
    """transformers' model on the same weights, with the loop of its users; `n_parts` micro-batches."""

    def __init__(self, model: Transformer, ids_BS: Tensor, load: float = 0.01, *, masters: bool):
        self.ids_BS, self.n_parts, self.masters = ids_BS, 1, masters
        self.model = mixtral_of_transformers(model).train()
        self.model = self.model.float() if masters else self.model
        self.model.set_experts_implementation("eager" if masters else "grouped_mm")
        self.model.config.output_router_logits = load > 0
        self.model.router_aux_loss_coef = load
        self.optimizer = users_adamw(self.model, lr=LR, betas=BETAS, decay=DECAY)

    def step(self) -> float:
        total = 0.0
        for part in self.ids_BS.chunk(self.n_parts):
            with torch.autocast(self.ids_BS.device.type, torch.bfloat16, enabled=self.masters):
                loss = self.model(input_ids=part, labels=part, use_cache=False).loss / self.n_parts
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)


def _theirs(model: Transformer, ids: Tensor, rounds: int, *, masters: bool) -> tuple[tuple[float, float], str]:
    """Seconds and bytes of their step, with as few micro-batches as fit; and what to say of that."""
    gc.collect()
    torch.cuda.empty_cache()
    theirs = Theirs(model, ids, masters=masters)
    while True:
        try:
            measured = _seconds(theirs.step, max(2, rounds - 1), warm_up=1)
        except torch.OutOfMemoryError:
            if theirs.n_parts >= len(ids):
                raise
            theirs.n_parts *= 2
        else:
            return measured, f"{theirs.n_parts} micro-batch{'es'[: 2 * (theirs.n_parts > 1)]}"
        theirs.optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()


def _seconds(step: Callable[[], float], rounds: int, warm_up: int = 2) -> tuple[float, float]:
    """Median seconds of a step, and the peak of memory in bytes; the loss has to be a number."""
    for _ in range(warm_up):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
        assert loss == loss, "the loss is not a number"
    return statistics.median(found), torch.cuda.max_memory_allocated()


class _Table:
    """Prints a line a side."""

    def __init__(self, tokens: int, operations: float, peak: float):
        self._tokens, self._operations, self._peak = tokens, operations, peak

    def __call__(self, name: str, measured: tuple[float, float], remark: str = "") -> tuple[float, float]:
        rate = self._tokens / measured[0]
        done = rate * self._operations
        figures = f"{rate:9,.0f} {done / 1e12:8.0f} {done / self._peak:8.1%} {measured[1] / 1e9:6.0f}"
        print(f"  {name:<38} {figures}  {remark}", flush=True)
        return measured


@contextmanager
def _cudnn() -> Iterator[None]:
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield


@contextmanager
def _one_by_one() -> Iterator[None]:
    """The loop that waits for the counts once a layer, with cuBLAS's product for each expert."""
    before = gpu_training.has_grouped_products
    gpu_training.has_grouped_products = lambda *tensors: False
    try:
        yield
    finally:
        gpu_training.has_grouped_products = before


def _profile(step: Callable[[], float]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:24]
    total = sum(e.self_device_time_total for e in found.key_averages())
    print(f"  busy {total / 1e3:.0f} ms of a step:")
    for e in rows:
        print(f"    {e.self_device_time_total / 1e3:8.2f} ms {e.count:5} x  {e.key[:90]}")


def check(device: torch.device) -> None:
    """A small model's loss and gradients in float32 and bfloat16 on the card against float64 on the CPU."""
    config = ModelConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=8, num_experts_per_tok=2, vocab_size=1000,
    )  # fmt: skip
    ids = torch.randint(0, 1000, (2, 96), generator=torch.Generator().manual_seed(1))
    wanted, exact = _loss_and_gradients(config, torch.float64, torch.device("cpu"), ids)
    length = sum(float(b.square().sum()) for b in exact) ** 0.5
    for dtype, bound, far in ((torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-2, 0.1)):  # some tokens part in bfloat16
        for is_recomputed in (False, True):
            loss, found = _loss_and_gradients(config, dtype, device, ids, is_recomputed)
            off = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True)) ** 0.5 / length
            how = f"{dtype}{', recomputed' if is_recomputed else ''}"
            print(f"check, {how}: loss {loss:.6f} of {wanted:.6f}, gradients within {off:.1e}", flush=True)
            assert abs(loss - wanted) <= bound * wanted and off <= far, "ours is wrong on this card"


def _loss_and_gradients(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, ids: Tensor, is_recomputed: bool = False
) -> tuple[float, list[Tensor]]:
    model = Transformer(config, dtype, device)
    initialise(model, std=0.05, seed=0)
    ours = Ours(recompute_blocks(model) if is_recomputed else model, ids.to(device))
    loss = ours.gradients()
    return loss, [p.grad.double().cpu() for p in model.parameters() if p.grad is not None]


if __name__ == "__main__":
    main()
