"""Prompt and decode speed on a slice of Mixtral 8x7B's true widths in bfloat16, beside transformers' experts backends.

    python benchmarks/mixtral_slice.py [--layers 4] [--prompt 512] [--tokens 12] [--rounds 3]

Random weights, random prompt; both sides share the weights' memory (4 layers: 6.3 GB).
"""

import argparse
import time

import torch
from peers import interleave, machine, mixtral_of_transformers, report

from coterie.config import ModelConfig
from coterie.engine.runner import Runner
from coterie.model import Transformer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Transformer(ModelConfig(num_hidden_layers=args.layers), torch.bfloat16).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.02)
    theirs = mixtral_of_transformers(model)
    prompt = torch.randint(3, 32000, (args.prompt,)).tolist()

    @torch.inference_mode()
    def ours() -> tuple[float, float]:
        runner, start = Runner(model), time.perf_counter()
        *_, last = runner.feed_all(0, prompt)
        logits = runner.logits(last.hidden_TD[-1:])
        read, token = time.perf_counter(), int(logits.argmax())
        for _ in range(args.tokens):
            token = int(runner.logits(runner.step([token]).hidden_TD).argmax())
        return args.prompt / (read - start), args.tokens / (time.perf_counter() - read)

    @torch.inference_mode()
    def transformers(backend: str) -> tuple[float, float]:
        theirs.set_experts_implementation(backend)
        start = time.perf_counter()
        out = theirs(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        read, token = time.perf_counter(), out.logits[:, -1:].argmax(-1)
        for _ in range(args.tokens):
            out = theirs(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return args.prompt / (read - start), args.tokens / (time.perf_counter() - read)

    runs = {"coterie": ours, "transformers grouped_mm": lambda: transformers("grouped_mm")}
    runs["transformers eager"] = lambda: transformers("eager")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}

    def side(name: str):  # type: ignore[no-untyped-def]
        def run() -> float:
            figures[name].append(runs[name]())
            return figures[name][-1][0]

        return run

    prompts = interleave({name: side(name) for name in runs}, args.rounds)
    decodes = {name: sorted(d for _, d in values[1:])[len(values[1:]) // 2] for name, values in figures.items()}
    print(f"{args.layers} layers of Mixtral 8x7B, bfloat16, {machine()}")
    report(f"prompt of {args.prompt}", "tokens/s", prompts, "coterie")
    report("decode, one sequence", "tokens/s", decodes, "coterie")


if __name__ == "__main__":
    main()
