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
from coterie.model import Transformer

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
    hidden = Runner(few).feed([(0, ids)]).hidden_TD
    with gpu.without():
        expected = Runner(few).feed([(0, ids)]).hidden_TD
    found["two layers, 900 tokens, beside torch's operations"] = float((hidden - expected).norm() / expected.norm())
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
            found += [(name, t) for t in stack.tensors()]
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
    theirs.set_experts_implementation(backend)
    theirs.model.rotary_emb.to("cuda")
    cache = StaticCache(config=theirs.config, max_cache_len=1024)
    ids = torch.randint(0, 32000, (1, _CONTEXT), device="cuda")
    found = {}
    if backend != "batched_mm":
        long = torch.randint(0, 32000, (1, n_tokens), device="cuda")
        found["prompt_tokens_per_second"] = n_tokens / seconds(lambda: theirs(long, logits_to_keep=1), 3)
    theirs(ids, past_key_values=cache, logits_to_keep=1)
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
    parser.add_argument("--bits", default="int4", help="also with packed experts of this type; '' for none")
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
    decoded("bf16", model, batches)
    if args.prompt:
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
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
