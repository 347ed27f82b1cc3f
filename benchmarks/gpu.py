"""Mixtral 8x7B at full size on one card, random weights: decoding and prompts, beside transformers on the same tensors.

    python benchmarks/gpu.py [--layers 32] [--peer-layers 8] [--bits int4] [--json FILE]

First what the card can do: the bandwidth of a copy (bytes read and written) and the rate of a bf16 matrix product.
A step of decoding reads each weight that it needs once: those bytes and the cache's, over that bandwidth, are its limit
(experts are counted as the routing chose them). A prompt is bound by products: 2 operations a weight and token, and
causal attention's. transformers runs the first `--peer-layers` layers of the same tensors, compiled with CUDA graphs,
each of its experts backends; ours runs those layers too for the ratio. A layer or two is held against float64 first.
Needs 96 GB for 32 layers in bf16; with less memory, fewer layers are taken and said.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from card import bandwidth, is_missing, matrix_peak, numbers, random_stack, seconds
from peers import arguments, mixtral_config, mixtral_of_transformers

from coterie.engine.choosing import greedy_ids
from coterie.engine.runner import Runner
from coterie.kernels import gpu
from coterie.kernels.pages import PAGE
from coterie.model import Transformer
from coterie.quant.card_layers import CardExperts
from coterie.quant.report import bits_of
from coterie.sizes import cache_bytes

_CONTEXT = 256  # tokens of each sequence before the steps that are timed
_WARM_UPS = 8  # steps


def build(n_layers: int) -> Transformer:
    model = Transformer(mixtral_config(n_layers), torch.bfloat16, "cuda")
    generator = torch.Generator("cuda").manual_seed(7)
    for name, tensor in model.tensors().items():
        if name.endswith("norm"):
            tensor.fill_(1)
        else:
            tensor.normal_(0, 0.02, generator=generator)
    return model.eval()


def first_layers(model: Transformer, n: int) -> Transformer:
    """The same tensors, fewer layers."""
    few = Transformer(mixtral_config(n), torch.bfloat16, "meta")
    few.embed, few.head, few.layers = model.embed, model.head, model.layers[:n]
    return few.eval()


@torch.inference_mode()
def check(block: torch.nn.Module, width: int) -> dict[str, float]:
    """Relative errors of a sparse block, few and many rows, against float64 sums of the same numbers."""
    found, experts = {}, block.experts
    for T in (1, 3, 64, 700):
        x = torch.randn(T, width, device="cuda").bfloat16()
        routing = block.router(x, None)
        expected = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
        for e in range(len(block.router.weight)):
            weight = torch.where(routing.ids_TK == e, routing.weights_TK, 0).sum(1)
            rows = weight.nonzero()[:, 0]
            gate, up = (x[rows].double() @ numbers(experts.gate_up, e).double().T).chunk(2, -1)
            out = (torch.nn.functional.silu(gate) * up) @ numbers(experts.down, e).double().T
            expected[rows] += weight[rows, None].double() * out
        found[f"sparse block, {T} rows"] = float((experts(x, routing).double() - expected).norm() / expected.norm())
    return found


@torch.inference_mode()
def check_layers(model: Transformer) -> dict[str, float]:
    """The relative error of two layers beside torch's operations."""
    few, ids = first_layers(model, 2), torch.randint(0, 32000, (900,)).tolist()
    got = Runner(few).feed([(0, ids)])
    with gpu.without():
        expected = Runner(few).feed([(0, ids)])
    pairs = zip(got.routings, expected.routings, strict=True)
    is_same = torch.stack([(a.ids_TK == b.ids_TK).all(1) for a, b in pairs]).all(0)  # else: logits as good as equal
    a, b = (output.hidden_TD[is_same].double() for output in (got, expected))
    share = float(is_same.float().mean())
    return {
        f"two layers, 900 tokens, beside torch ({share:.1%} of rows routed alike)": float((a - b).norm() / b.norm())
    }


def decode(model: Transformer, n_sequences: int, n_steps: int) -> dict[str, float]:
    """Tokens per second of steps with random tokens, the host's part and the chosen ids' way back included."""
    n_pages = -(-(_CONTEXT + _WARM_UPS + n_steps) // PAGE)
    runner = Runner(model, n_pages=n_sequences * (n_pages + 2))
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    for slot in range(n_sequences):
        runner.feed([(slot, torch.randint(0, vocabulary, (_CONTEXT,), generator=generator).tolist())])
    distinct, taken = [], []
    for step in range(_WARM_UPS + n_steps):
        ids = torch.randint(0, vocabulary, (n_sequences,), generator=generator).tolist()
        torch.cuda.synchronize()
        started = time.perf_counter()
        output = runner.step(ids)
        greedy_ids(runner.logits(output.hidden_TD))
        if step >= _WARM_UPS:
            taken.append(time.perf_counter() - started)
            distinct.append(sum(len(set(r.ids_TK.flatten().tolist())) for r in output.routings))
    second = statistics.median(taken)
    return {
        "tokens_per_second": n_sequences / second,
        "ms_per_step": second * 1e3,
        "bytes_per_step": step_bytes(model, statistics.mean(distinct), n_sequences),
    }


def step_bytes(model: Transformer, n_experts: float, n_sequences: int) -> float:
    """What a step must read: all but embedding and experts, the experts chosen (all layers), keys and values."""
    c, found = model.config, bits_of(model)
    assert c.num_local_experts is not None
    experts = sum(b.nbytes for b in found if b.part == "experts") / (c.num_hidden_layers * c.num_local_experts)
    dense = sum(b.nbytes for b in found if b.part not in ("experts", "embedding"))
    return dense + n_experts * experts + cache_bytes(c, n_sequences * _CONTEXT, bytes_per_number=2)


def prompt(model: Transformer, n_tokens: int, rounds: int) -> dict[str, float]:
    ids = torch.randint(0, model.config.vocab_size, (n_tokens,)).tolist()
    runner = Runner(model, n_pages=n_tokens // PAGE + 2)

    def run() -> None:
        runner.cache.clear(0)
        output = runner.feed([(0, ids)])
        greedy_ids(runner.logits(output.hidden_TD[-1:]))

    second = seconds(run, rounds)
    c = model.config
    dense = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim * c.hidden_size
    dense += c.num_attention_heads * c.head_dim * c.hidden_size
    sparse = 3 * c.hidden_size * c.intermediate_size * c.num_experts_per_tok
    attention = 2 * c.num_attention_heads * c.head_dim * n_tokens  # causal: half of 4·T·H·P
    operations = c.num_hidden_layers * n_tokens * (2 * (dense + sparse) + attention)
    return {"tokens_per_second": n_tokens / second, "seconds": second, "operations_per_second": operations / second}


@torch.inference_mode()
def peer(model: Transformer, backend: str, n_tokens: int, rounds: int) -> dict[str, float]:
    """transformers: tokens per second of one sequence (static cache, compiled with CUDA graphs), and of a prompt."""
    from transformers import StaticCache

    torch._dynamo.reset()
    theirs = mixtral_of_transformers(model)
    theirs.set_experts_implementation("grouped_mm")  # for prompts: gathering weights for them takes too much memory
    theirs.model.rotary_emb.to("cuda")
    cache = StaticCache(config=theirs.config, max_cache_len=1024)
    ids = torch.randint(0, 32000, (1, _CONTEXT), device="cuda")
    found = {}
    if n_tokens and backend != "batched_mm":
        long = torch.randint(0, 32000, (1, n_tokens), device="cuda")
        found["prompt_tokens_per_second"] = n_tokens / seconds(lambda: theirs(long, logits_to_keep=1), 3)
    theirs(ids, past_key_values=cache, logits_to_keep=1)
    theirs.set_experts_implementation(backend)
    compiled = torch.compile(theirs.forward, mode="reduce-overhead", fullgraph=False)
    position = torch.tensor([[_CONTEXT]], device="cuda")
    taken = []
    for step in range(_WARM_UPS + rounds):
        token = torch.randint(0, 32000, (1, 1), device="cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()
        logits = compiled(token, past_key_values=cache, position_ids=position, use_cache=True).logits
        logits[:, -1].argmax(-1).tolist()
        if step >= _WARM_UPS:
            taken.append(time.perf_counter() - started)
        position = position + 1
    return found | {"tokens_per_second": 1 / statistics.median(taken)}


class Report:
    """A line for people and an entry of the JSON document at a time."""

    def __init__(self, copy: float, peak: float):
        self._copy, self._peak = copy, peak
        self.found: dict[str, Any] = {"bandwidth": copy, "matrix_peak": peak}

    def errors(self, label: str, errors: dict[str, float]) -> None:
        self.found[f"errors, {label}"] = errors
        for name, error in errors.items():
            self.line(f"{label}: {name}", f"{error:.1e}")

    def decoded(self, label: str, model: Transformer, batches: Sequence[int], n_steps: int) -> None:
        for n in batches:
            result = decode(model, n, n_steps)
            limit = n * self._copy / result["bytes_per_step"]
            share = result["tokens_per_second"] / limit
            self.found[f"decode {label} {n}"] = result | {"limit": limit, "share": share}
            rate = f"{result['tokens_per_second']:.1f} tok/s"
            self.line(f"decode, {n} sequence(s), {label}", rate, f"limit {limit:.1f}", f"{share:.1%}")
            torch.cuda.empty_cache()

    def prompted(self, label: str, model: Transformer, n_tokens: int, rounds: int) -> None:
        if n_tokens:
            result = prompt(model, n_tokens, rounds)
            share = result["operations_per_second"] / self._peak
            self.found[f"prompt {label}"] = result | {"share": share}
            rate, speed = (f"{result[name]:.3g}" for name in ("tokens_per_second", "operations_per_second"))
            self.line(f"prompt of {n_tokens} tokens, {label}", f"{rate} tok/s", f"{speed} op/s", f"{share:.1%}")
            torch.cuda.empty_cache()

    def peer(self, model: Transformer, backend: str, n_tokens: int, rounds: int) -> None:
        try:
            result = peer(model, backend, n_tokens, rounds)
        except Exception as e:  # a backend that this torch or card has not got
            print(f"  transformers, {backend}: {type(e).__name__}: {str(e)[:200]}", flush=True)
            return
        self.found[f"transformers {backend}"] = result
        for name, value in result.items():
            self.line(f"transformers, {backend}, {name.replace('_', ' ')}", f"{value:.1f}")

    def line(self, name: str, value: str, limit: str = "", share: str = "") -> None:
        print(f"  {name:<60} {value:>16} {limit:>18} {share:>7}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__, rounds=20)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--peer-layers", type=int, default=8, help="of the same tensors, for transformers; 0: without")
    parser.add_argument("--batches", default="1,8,64", help="sequences decoded together (default: 1,8,64)")
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--bits", default="int4,q4_0,fp8", help="packed experts, one after the other; '' for none")
    parser.add_argument("--no-bf16", action="store_true", help="only the packed ones")
    parser.add_argument("--backends", default="batched_mm,grouped_mm", help="experts backends of transformers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if is_missing():
        return 0
    n_layers = min(args.layers, int((torch.cuda.mem_get_info()[0] - (6 << 30)) / 2.92e9))
    report = Report(copy := bandwidth(), peak := matrix_peak())
    card = torch.cuda.get_device_name()
    report.found |= {"card": card, "torch": torch.__version__, "layers": n_layers}
    print(f"{card}, torch {torch.__version__}: copy {copy / 1e12:.2f} TB/s, bf16 product {peak / 1e12:.0f} TFLOP/s")
    torch.cuda.empty_cache()
    with torch.inference_mode():
        model = build(n_layers)
    print(f"Mixtral 8x7B, {n_layers} layers, bf16, {torch.cuda.memory_allocated() / 1e9:.1f} GB")
    width, batches = model.config.hidden_size, [int(n) for n in args.batches.split(",") if n]
    report.errors("bf16", check(model.layers[0].feed_forward, width) | check_layers(model))
    if not args.no_bf16:
        report.decoded("bf16", model, batches, args.rounds)
        report.prompted("bf16", model, args.prompt, 3)
    if args.peer_layers:
        few = first_layers(model, min(args.peer_layers, n_layers))
        report.decoded(f"bf16, {args.peer_layers} layers", few, [1], args.rounds)
        report.prompted(f"bf16, {args.peer_layers} layers", few, args.prompt, 3)
        for backend in args.backends.split(","):
            report.peer(few, backend, args.prompt, args.rounds)
            torch.cuda.empty_cache()
    for name in [name for name in args.bits.split(",") if name]:
        pack_experts(model, name)
        report.errors(name, check(model.layers[0].feed_forward, width))
        report.decoded(f"{name} experts", model, batches, args.rounds)
        report.prompted(f"{name} experts", model, args.prompt, 3)
    if args.json:
        args.json.write_text(json.dumps(report.found, indent=1))
    return 0


@torch.inference_mode()
def pack_experts(model: Transformer, name: str) -> None:
    """Random experts of one format in the place of those that are there, which go."""
    c = model.config
    shape = c.num_local_experts, 2 * c.intermediate_size, c.hidden_size
    for block in model.layers:
        block.feed_forward.experts = None
        gate_up, down = random_stack(name, shape), random_stack(name, (shape[0], shape[2], c.intermediate_size))
        block.feed_forward.experts = CardExperts(gate_up, down)
    torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
