"""The native CPU kernels on a quantised model, beside llama.cpp on the same file and transformers in bf16, in turn.

Writes a Q4_0 GGUF file of Mixtral's widths (4 layers: 3.4 GB), uses it, removes it. llama.cpp runs in the Python that
COTERIE_LLAMA_PYTHON names (one with llama-cpp-python); without it that side is left out. Token ids are random, so that
routing is diverse. Memory bandwidth is measured in the same run, counted in bytes of weights that a step reads.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bandwidth import read_bandwidth
from peers import arguments, interleave, machine, mixtral_config, mixtral_of_transformers, report
from synthetic import write_synthetic

import coterie
from coterie import CoterieError
from coterie.checkpoint.atomic import require_disk
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import DEMO
from coterie.engine.runner import Runner
from coterie.model import Transformer

LLAMA = Path(__file__).parent / "llama_peer.py"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "coterie", "benchmarks")
    parser.add_argument("--gguf", type=Path, help="measure this file instead, and leave it")
    parser.add_argument("--folder", type=Path, default=cache, help=f"for the file (default: {cache})")
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: 4)")
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: 512)")
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a round (default: 24)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--demo", action="store_true", help="the model that ships beside its F16 export, and no more")
    parser.add_argument("--no-transformers", action="store_true", help="which needs 12 GB for four layers")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.demo:
        _demo(args)
        return
    path = args.gguf or args.folder / f"synthetic-{args.layers}-{args.scale}.gguf"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            require_disk(path, 900_000_000 * args.layers // args.scale)
            write_synthetic(path, mixtral_config(args.layers, args.scale))
        _measure(path, args)
    except CoterieError as e:
        sys.exit(f"{Path(__file__).name}: {e}")
    finally:
        if args.gguf is None:
            path.unlink(missing_ok=True)


def _measure(path: Path, args: Any) -> None:
    from coterie.kernels import cpu

    peer = Llama(path, args.threads) if os.environ.get("COTERIE_LLAMA_PYTHON") else None
    print(f"{machine()}, kernels {cpu.used()}", flush=True)
    _loads(path, args)
    lm = coterie.load(path)
    ours = Ours(lm.model)
    bandwidths: list[float] = []
    for n in (1, 8, 32):
        tokens = args.tokens if n == 1 else max(2, args.tokens // 4)
        sides = {"coterie": lambda n=n, tokens=tokens: n * tokens / ours.decode(n, tokens)}
        if peer is not None:
            sides["llama.cpp"] = lambda n=n, tokens=tokens: n * tokens / peer.ask(sequences=n, tokens=tokens)
        sides["reads, GB/s"] = lambda: bandwidths.append(read_bandwidth(args.threads)) or bandwidths[-1]
        found = interleave(sides, args.rounds)
        reads = found.pop("reads, GB/s")
        _report(f"decode, {n} together", found)
        rate = ours.n_bytes * found["coterie"] / n / 1e9
        print(f"  weights: {ours.n_bytes / 1e9:.2f} GB a step, {rate:.1f} GB/s; a plain read: {reads:.1f} GB/s\n")
    sides = {"coterie": lambda: args.prompt / ours.prompt(args.prompt)}
    if peer is not None:
        sides["llama.cpp"] = lambda: args.prompt / peer.ask(prompt=args.prompt)
    _report(f"prompt of {args.prompt}", interleave(sides, args.rounds))
    if peer is not None:
        peer.close()
    if not args.no_transformers:
        _beside_transformers(ours, args)


def _demo(args: Any) -> None:
    """The model that ships, texts and all, beside llama.cpp's bare steps on its export."""
    lm, n_tokens = coterie.load(), 200
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.gguf"
        convert(DEMO, path, to="gguf", type="f16")
        peer = Llama(path, args.threads)

        def ours(n: int) -> float:
            start = time.perf_counter()
            done = lm.generate_many(["Il était une fois"] * n, max_tokens=n_tokens)
            return sum(c.usage.completion_tokens for c in done) / (time.perf_counter() - start)

        for n in (1, 8):
            sides = {
                "coterie": lambda n=n: ours(n),
                "llama.cpp": lambda n=n: n * n_tokens / peer.ask(sequences=n, tokens=n_tokens),
            }
            _report(f"the model that ships, {n} together", interleave(sides, args.rounds))
        peer.close()


def _loads(path: Path, args: Any) -> None:
    """From the call to the first token's logits at hand, each in a fresh process, imports aside, the file in memory."""
    code = (
        "import sys, time, torch; torch.set_num_threads(int(sys.argv[2])); import coterie, coterie.api; "
        "from coterie.checkpoint import gguf_load; s = time.perf_counter(); lm = coterie.load(sys.argv[1]); "
        "print(time.perf_counter() - s)"
    )

    def ours() -> float:
        command = [sys.executable, "-c", code, str(path), str(args.threads)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    sides: dict[str, Callable[[], float]] = {"coterie": ours}
    if os.environ.get("COTERIE_LLAMA_PYTHON"):
        sides["llama.cpp"] = lambda: Llama(path, args.threads).close()
    _report("ready, from the call", interleave(sides, min(3, args.rounds)), "s", is_rate=False)


def _beside_transformers(ours: "Ours", args: Any) -> None:
    config = mixtral_config(args.layers, args.scale)
    plain = Transformer(config, torch.bfloat16)
    for p in plain.parameters():
        p.data.copy_(
            torch.randn(min(p.numel(), 1 << 16)).repeat(-(-p.numel() // (1 << 16)))[: p.numel()].view(p.shape) / 64
        )
    theirs = mixtral_of_transformers(plain)
    theirs.set_experts_implementation("grouped_mm")
    ids = torch.randint(3, config.vocab_size, (1, args.prompt))

    @torch.inference_mode()
    def run(backend: str) -> float:
        theirs.set_experts_implementation(backend)
        start = time.perf_counter()
        theirs(ids, logits_to_keep=1)
        return args.prompt / (time.perf_counter() - start)

    sides = {"coterie": lambda: args.prompt / ours.prompt(args.prompt)}
    sides |= {f"transformers bf16 {name}": lambda name=name: run(name) for name in ("eager", "grouped_mm")}
    _report(f"prompt of {args.prompt}", interleave(sides, args.rounds))


class Ours:
    """The model in the engine's runner; `n_bytes`: weights that the last step read."""

    def __init__(self, model: Transformer):
        self.model, self.n_bytes = model, 0

    def prompt(self, n: int) -> float:
        runner, ids = Runner(self.model), torch.randint(3, self.model.config.vocab_size, (n,)).tolist()
        start = time.perf_counter()
        for output in runner.feed_all(0, ids):
            runner.logits(output.hidden_TD[-1:])
        return time.perf_counter() - start

    def decode(self, n: int, tokens: int) -> float:
        runner, vocab = Runner(self.model), self.model.config.vocab_size
        runner.feed([(slot, [1]) for slot in range(n)])
        start, n_bytes = 0.0, 0
        for position in range(tokens + 1):
            if position == 1:
                start, n_bytes = time.perf_counter(), 0
            output = runner.step(torch.randint(3, vocab, (n,)).tolist())
            runner.logits(output.hidden_TD)
            n_bytes += self._read(output)
        seconds = time.perf_counter() - start
        self.n_bytes = n_bytes // tokens
        return seconds

    def _read(self, output: Any) -> int:
        """Bytes of the weights of a step: all but the embedding, and of the experts those that were chosen."""
        total = sum(p.nbytes for p in self.model.head.linear.parts)
        for block, routing in zip(self.model.layers, output.routings, strict=True):
            attention, experts = block.attention, block.feed_forward.experts
            total += sum(p.nbytes for p in (*attention.qkv.linear.parts, *attention.o.parts))
            for e in set(routing.ids_TK.flatten().tolist()):
                total += experts.gate_up[e].nbytes + experts.down[e].nbytes
        return total


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, path: Path, threads: int):
        command = [os.environ["COTERIE_LLAMA_PYTHON"], str(LLAMA), str(path), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.load = self._answer("load")

    def ask(self, **question: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer("seconds")

    def close(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        return self.load

    def _answer(self, key: str) -> float:
        assert self._process.stdout is not None
        return float(json.loads(self._process.stdout.readline())[key])


def _report(title: str, found: dict[str, float], unit: str = "tok/s", is_rate: bool = True) -> None:
    if len(found) > 1:
        report(title, unit, found, "coterie", is_rate)
    else:
        print(f"{title} ({unit})\n  coterie {found['coterie']:.2f} (no peer)\n")


if __name__ == "__main__":
    main()
