"""Mixtral 8x7B at full size on one card, random weights: decoding and prompts, beside transformers on the same tensors.

    python benchmarks/gpu.py [--layers 32] [--peer-layers 8] [--bits int4] [--json FILE]

First what the card can do: the bandwidth of a copy (bytes read and written) and the rate of a bf16 matrix product.
A step of decoding reads each weight that it needs once: those bytes and the cache's, over that bandwidth, are its limit
(experts are counted as the routing chose them). A prompt is bound by products: 2 operations a weight and token, and
causal attention's. transformers runs the first `--peer-layers` layers of the same tensors, compiled with CUDA graphs,
each of its experts backends; ours runs those layers too for the ratio. A layer or two is held against float64 first.
Needs 96 GB for 32 layers in bf16; with less memory, fewer layers are taken and said.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import mixtral_config, mixtral_of_transformers

from coterie.engine.choosing import greedy_ids
from coterie.engine.runner import Runner
from coterie.kernels import gpu
from coterie.kernels.packed import FP8, Layout, Packed
from coterie.model import Transformer

LAYOUTS = {"int4": Layout(4, 32, 32, "super_min"), "q4_0": Layout(4, 32, 32, "f16"), "fp8": FP8}
_CONTEXT = 256  # tokens of each sequence before the steps that are timed
_GENERATOR_SEED = 7


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median over runs, each waited for."""
    taken = []
    for i in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def bandwidth() -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(1 << 31, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 10)


def matrix_peak() -> float:
    """Operations per second of a bf16 product of random matrices."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / seconds(lambda: torch.mm(a, b, out=out), 10)


def build(n_layers: int) -> Transformer:
    model = Transformer(mixtral_config(n_layers), torch.bfloat16, "cuda")
    generator = torch.Generator("cuda").manual_seed(_GENERATOR_SEED)
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
def check(model: Transformer) -> dict[str, float]:
    """Relative errors of a sparse block, few and many rows, against float64; and of two layers against torch's."""
    found = {}
    block = model.layers[0].feed_forward
    for T in (1, 3, 64, 700):
        x = torch.randn(T, model.config.hidden_size, device="cuda").bfloat16()
        routing = block.router(x, None)
        got = block.experts(x, routing)
        expected = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
        for e in range(8):
            weight = torch.where(routing.ids_TK == e, routing.weights_TK, 0).sum(1)
            rows = weight.nonzero()[:, 0]
            gate, up = (x[rows].double() @ block.experts.gate_up[e].double().T).chunk(2, -1)
            out = (torch.nn.functional.silu(gate) * up) @ block.experts.down[e].double().T
            expected[rows] += weight[rows, None].double() * out
        found[f"sparse block, {T} rows"] = float((got.double() - expected).norm() / expected.norm())
    few = first_layers(model, 2)
    ids = torch.randint(0, 32000, (900,)).tolist()
    got = Runner(few).feed([(0, ids)])
    with gpu.without():
        expected = Runner(few).feed([(0, ids)])
    pairs = zip(got.routings, expected.routings, strict=True)
    is_same = torch.stack([(a.ids_TK == b.ids_TK).all(1) for a, b in pairs]).all(0)  # else: logits as good as equal
    a, b = (output.hidden_TD[is_same].double() for output in (got, expected))
    share = float(is_same.float().mean())
    found[f"two layers, 900 tokens, beside torch ({share:.1%} of rows routed alike)"] = float((a - b).norm() / b.norm())
    return found


class PackedExperts(torch.nn.Module):
    """Random experts of one layout on the card; `coterie load(quantize=)` makes such ones of real weights."""

    def __init__(self, layout: Layout, E: int, F: int, D: int):
        super().__init__()
        self.gate_up, self.down = _random(layout, (E, 2 * F, D)), _random(layout, (E, D, F))
        self.stacks = self.gate_up, self.down

    def forward(self, x_TD: torch.Tensor, routing: Any) -> torch.Tensor:
        return gpu.sparse_ffn(x_TD, routing.ids_TK, routing.weights_TK, self.gate_up, self.down)


def _random(layout: Layout, shape: tuple[int, int, int]) -> Packed:
    """Every code, and scales that make weights of about 0.02."""
    stack = Packed.empty(layout, shape, "cuda")
    if layout is FP8:
        for matrix in stack.low:
            numbers = torch.randn(matrix.shape, dtype=torch.bfloat16, device="cuda") * 100
            matrix.copy_(numbers.clamp_(-448, 448))  # beyond float8's largest number lies NaN
        stack.scale.fill_(2e-4)
        return stack
    for tensor in (stack.low, stack.high):
        if tensor is not None:
            tensor.view(torch.uint8).random_(0, 256)
    if stack.sub is not None:
        stack.sub.view(torch.uint8).random_(1, 32)
    size = 0.02 / (1 << (layout.bits - 1)) / (16 if layout.is_super else 1)
    scale = stack.scale if stack.scale.dtype == torch.float16 else stack.scale.view(torch.float16)
    scale.uniform_(0.5 * size, 1.5 * size)
    if layout.has_offset:  # the offset is subtracted, so that weights lie about 0
        scale.view(*scale.shape[:-1], -1, 2)[..., 1] *= float(1 << (layout.bits - 1))
    return stack


@torch.inference_mode()
def check_packed(block: torch.nn.Module, width: int) -> dict[str, float]:
    """Relative errors of a packed sparse block against float64 sums of the same numbers."""
    found, experts = {}, block.experts
    for T in (1, 3, 64, 700):
        x = torch.randn(T, width, device="cuda").bfloat16()
        routing = block.router(x, None)
        got, expected = experts(x, routing), torch.zeros(x.shape, dtype=torch.float64, device="cuda")
        for e in range(len(experts.gate_up.low)):
            weight = torch.where(routing.ids_TK == e, routing.weights_TK, 0).sum(1)
            rows = weight.nonzero()[:, 0]
            gate, up = (x[rows].double() @ experts.gate_up.numbers(e).double().T).chunk(2, -1)
            out = (torch.nn.functional.silu(gate) * up) @ experts.down.numbers(e).double().T
            expected[rows] += weight[rows, None].double() * out
        found[f"packed sparse block, {T} rows"] = float((got.double() - expected).norm() / expected.norm())
    return found


def decode(model: Transformer, n_sequences: int, n_steps: int = 24) -> dict[str, float]:
    """Tokens per second of steps with random tokens, the host's part and the chosen ids' way back included."""
    runner = Runner(model, n_pages=n_sequences * (-(-(_CONTEXT + n_steps) // 64) + 2))
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    for slot in range(n_sequences):
        runner.feed([(slot, torch.randint(0, vocabulary, (_CONTEXT,), generator=generator).tolist())])
    distinct, taken = [], []
    for step in range(n_steps):
        ids = torch.randint(0, vocabulary, (n_sequences,), generator=generator).tolist()
        torch.cuda.synchronize()
        started = time.perf_counter()
        output = runner.step(ids)
        greedy_ids(runner.logits(output.hidden_TD))
        if step >= 4:
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
    c = model.config
    sizes = model_bytes(model)
    cache = n_sequences * _CONTEXT * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
    return sizes["dense"] + n_experts * sizes["expert"] + cache


def model_bytes(model: Transformer) -> dict[str, float]:
    c = model.config
    assert c.num_local_experts is not None
    experts = dense = 0.0
    for block in model.layers:
        for name, tensor in [*block.named_parameters(), *_packed(block)]:
            if "experts" in name:
                experts += tensor.nbytes
            else:
                dense += tensor.nbytes
    dense += sum(t.nbytes for _, t in [*model.head.named_parameters(), *_packed(model.head)])
    return {"dense": dense, "expert": experts / (c.num_hidden_layers * c.num_local_experts)}


def _packed(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors of packed parts, which are no parameters."""
    found = []
    for name, part in module.named_modules():
        for stack in getattr(part, "stacks", ()):
            found += [(name, t) for t in stack.tensors]
    return found


def prompt(model: Transformer, n_tokens: int) -> dict[str, float]:
    ids = torch.randint(0, model.config.vocab_size, (n_tokens,)).tolist()
    runner = Runner(model, n_pages=n_tokens // 64 + 2)

    def run() -> None:
        runner.cache.clear(0)
        output = runner.feed([(0, ids)])
        greedy_ids(runner.logits(output.hidden_TD[-1:]))

    second = seconds(run, 3)
    c = model.config
    dense = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim * c.hidden_size
    dense += c.num_attention_heads * c.head_dim * c.hidden_size
    sparse = 3 * c.hidden_size * c.intermediate_size * c.num_experts_per_tok
    attention = 2 * c.num_attention_heads * c.head_dim * n_tokens  # causal: half of 4·T·H·P
    operations = c.num_hidden_layers * n_tokens * (2 * (dense + sparse) + attention)
    return {"tokens_per_second": n_tokens / second, "seconds": second, "operations_per_second": operations / second}


@torch.inference_mode()
def peer(model: Transformer, backend: str, n_tokens: int = 8192) -> dict[str, float]:
    """transformers: tokens per second of one sequence (static cache, compiled with CUDA graphs), and of a prompt."""
    from transformers import StaticCache

    torch._dynamo.reset()
    theirs = mixtral_of_transformers(model)
    theirs.set_experts_implementation("grouped_mm")  # for prompts: gathering weights for them takes too much memory
    theirs.model.rotary_emb.to("cuda")
    cache = StaticCache(config=theirs.config, max_cache_len=1024)
    ids = torch.randint(0, 32000, (1, _CONTEXT), device="cuda")
    found = {}
    if backend != "batched_mm":
        long = torch.randint(0, 32000, (1, n_tokens), device="cuda")
        found["prompt_tokens_per_second"] = n_tokens / seconds(lambda: theirs(long, logits_to_keep=1), 3)
    theirs(ids, past_key_values=cache, logits_to_keep=1)
    theirs.set_experts_implementation(backend)
    compiled = torch.compile(theirs.forward, mode="reduce-overhead", fullgraph=False)
    position = torch.tensor([[_CONTEXT]], device="cuda")
    taken = []
    for step in range(28):
        token = torch.randint(0, 32000, (1, 1), device="cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()
        logits = compiled(token, past_key_values=cache, position_ids=position, use_cache=True).logits
        logits[:, -1].argmax(-1).tolist()
        if step >= 8:
            taken.append(time.perf_counter() - started)
        position = position + 1
    return found | {"tokens_per_second": 1 / statistics.median(taken)}


def line(name: str, value: str, limit: str = "", share: str = "") -> None:
    print(f"  {name:<44} {value:>16} {limit:>22} {share:>9}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--peer-layers", type=int, default=8, help="of the same tensors, for transformers; 0: without")
    parser.add_argument("--batches", default="1,8,64", help="sequences decoded together (default: 1,8,64)")
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--bits", default="int4,q4_0,fp8", help="packed experts, one after the other; '' for none")
    parser.add_argument("--no-bf16", action="store_true", help="only the packed ones")
    parser.add_argument("--backends", default="batched_mm,grouped_mm", help="experts backends of transformers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA card, and torch sees none: nothing was measured")
        return 0
    card = torch.cuda.get_device_name()
    n_layers = min(args.layers, int((torch.cuda.mem_get_info()[0] - (6 << 30)) / 2.92e9))
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "layers": n_layers}
    copy, peak = bandwidth(), matrix_peak()
    found |= {"bandwidth": copy, "matrix_peak": peak}
    print(f"{card}, torch {torch.__version__}: copy {copy / 1e12:.2f} TB/s, bf16 product {peak / 1e12:.0f} TFLOP/s")
    torch.cuda.empty_cache()
    with torch.inference_mode():
        model = build(n_layers)
    print(f"Mixtral 8x7B, {n_layers} layers, bf16, {torch.cuda.memory_allocated() / 1e9:.1f} GB")
    found["errors"] = check(model)
    for name, error in found["errors"].items():
        line(name, f"{error:.1e}")
    torch.cuda.empty_cache()

    def decoded(label: str, model: Transformer, batches: list[int]) -> None:
        for n in batches:
            result = decode(model, n)
            limit = n * copy / result["bytes_per_step"]
            share = result["tokens_per_second"] / limit
            found[f"decode {label} {n}"] = result | {"limit": limit, "share": share}
            line(
                f"decode, {n} sequence(s), {label}",
                f"{result['tokens_per_second']:.1f} tok/s",
                f"limit {limit:.1f}",
                f"{share:.1%}",
            )
            torch.cuda.empty_cache()

    batches = [int(n) for n in args.batches.split(",") if n]
    if not args.no_bf16:
        decoded("bf16", model, batches)
    if args.prompt and not args.no_bf16:
        result = prompt(model, args.prompt)
        share = result["operations_per_second"] / peak
        found["prompt bf16"] = result | {"share": share}
        rate = f"{result['operations_per_second'] / 1e12:.0f} TFLOP/s"
        line(f"prompt of {args.prompt} tokens, bf16", f"{result['tokens_per_second']:.0f} tok/s", rate, f"{share:.1%}")
        torch.cuda.empty_cache()
    if args.peer_layers:
        few = first_layers(model, min(args.peer_layers, n_layers))
        decoded(f"bf16, {args.peer_layers} layers", few, [1])
        result = prompt(few, args.prompt)
        found["prompt of the peer's layers"] = result
        line(f"prompt, {args.peer_layers} layers", f"{result['tokens_per_second']:.0f} tok/s")
        for backend in args.backends.split(","):
            try:
                result = peer(few, backend, args.prompt)
            except Exception as e:  # a backend that this torch or card has not got
                print(f"  transformers, {backend}: {type(e).__name__}: {str(e)[:200]}", flush=True)
                continue
            found[f"transformers {backend}"] = result
            line(f"transformers compiled, {backend}, 1 sequence", f"{result['tokens_per_second']:.1f} tok/s")
            if "prompt_tokens_per_second" in result:
                line(f"transformers, {backend}, prompt", f"{result['prompt_tokens_per_second']:.0f} tok/s")
            torch.cuda.empty_cache()
    for name in [name for name in args.bits.split(",") if name]:
        layout = LAYOUTS[name]
        c = model.config
        for block in model.layers:  # in the place of the plain ones, which go
            block.feed_forward.experts = None
            with torch.inference_mode():
                block.feed_forward.experts = PackedExperts(layout, 8, c.intermediate_size, c.hidden_size)
        torch.cuda.empty_cache()
        found[f"errors {name}"] = check_packed(model.layers[0].feed_forward, c.hidden_size)
        for label, error in found[f"errors {name}"].items():
            line(f"{name}: {label}", f"{error:.1e}")
        decoded(f"{name} experts", model, batches)
        if args.prompt:
            result = prompt(model, args.prompt)
            share = result["operations_per_second"] / peak
            found[f"prompt {name}"] = result | {"share": share}
            rate = f"{result['operations_per_second'] / 1e12:.0f} TFLOP/s"
            line(f"prompt of {args.prompt}, {name}", f"{result['tokens_per_second']:.0f} tok/s", rate, f"{share:.1%}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
