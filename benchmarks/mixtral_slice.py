"""Prompt and decode speed on a slice of Mixtral 8x7B's true widths in bfloat16, beside transformers' experts backends.

Random weights, random prompt; both sides share the weights' memory (4 layers: 6.1 billion parameters, 12.1 GB).
transformers' batched_mm gathers the experts of every token, so it decodes here but does not read the prompt.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from peers import arguments, interleave, machine, mixtral_config, mixtral_of_transformers, report

from coterie.engine.runner import Runner
from coterie.model import Transformer

Speeds = tuple[float, float]  # tokens a second: of the prompt, of decoding
BACKENDS = {"grouped_mm": "grouped_mm", "eager": "eager", "batched_mm": "eager"}  # decoding: reading the prompt


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: 4)")
    parser.add_argument("--prompt", type=int, default=512, help="its length in tokens (default: 512)")
    parser.add_argument("--tokens", type=int, default=12, help="new tokens of a run (default: 12)")
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = Transformer(mixtral_config(args.layers, args.scale), torch.bfloat16).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, 0.02)
    prompt = torch.randint(3, model.config.vocab_size, (args.prompt,)).tolist()
    print(f"{args.layers} layers of Mixtral 8x7B, {model.dtype}, {machine()}")
    figures: dict[str, list[Speeds]] = {}
    sides = {name: _recorded(name, run, figures) for name, run in _runs(model, prompt, args.tokens).items()}
    prompts = interleave(sides, args.rounds)
    del prompts["transformers batched_mm"]
    report(f"prompt of {args.prompt}", "tokens/s", prompts, "coterie")
    decodes = {name: median(decode for _, decode in speeds[1:]) for name, speeds in figures.items()}
    report("decode, one sequence", "tokens/s", decodes, "coterie")


def _runs(model: Transformer, prompt: list[int], n_tokens: int) -> dict[str, Callable[[], Speeds]]:
    theirs, ids = mixtral_of_transformers(model), torch.tensor([prompt])

    @torch.inference_mode()
    def ours() -> Speeds:
        runner, start = Runner(model), time.perf_counter()
        *_, last = runner.feed_all(0, prompt)
        token = int(runner.logits(last.hidden_TD[-1:]).argmax())
        read = time.perf_counter()
        for _ in range(n_tokens):
            token = int(runner.logits(runner.step([token]).hidden_TD).argmax())
        return len(prompt) / (read - start), n_tokens / (time.perf_counter() - read)

    @torch.inference_mode()
    def transformers(backend: str) -> Speeds:
        theirs.set_experts_implementation(BACKENDS[backend])
        start = time.perf_counter()
        out = theirs(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        read = time.perf_counter()
        theirs.set_experts_implementation(backend)
        for _ in range(n_tokens):
            out = theirs(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return len(prompt) / (read - start), n_tokens / (time.perf_counter() - read)

    runs: dict[str, Callable[[], Speeds]] = {"coterie": ours}
    for backend in BACKENDS:
        runs[f"transformers {backend}"] = lambda b=backend: transformers(b)  # type: ignore[misc]
    return runs


def _recorded(name: str, run: Callable[[], Speeds], figures: dict[str, list[Speeds]]) -> Callable[[], float]:
    """`run` as `interleave` wants it: the prompt's speed, with both speeds kept in `figures`."""

    def once() -> float:
        figures.setdefault(name, []).append(run())
        return figures[name][-1][0]

    return once


if __name__ == "__main__":
    main()
