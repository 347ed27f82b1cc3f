"""Prompt and decode speed on a slice of Mixtral 8x7B's true widths in bfloat16, beside transformers' experts backends.

Random weights, random prompt; both sides share the weights' memory (4 layers: 6.1 billion parameters, 12.1 GB).
transformers' batched_mm gathers the experts of every token, so it decodes here but does not read the prompt.
"""

import time
from collections.abc import Callable, Sequence

import torch
from peers import arguments, interleave, machine, mixtral_config, mixtral_of_transformers, report

from coterie.engine.runner import Runner
from coterie.model import Transformer

Side = Callable[[], float]  # one run: tokens a second
BACKENDS = {"grouped_mm": "grouped_mm", "eager": "eager", "batched_mm": "eager"}  # decoding: reading the prompt


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
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
    readers = _sides(model, prompt, 0)
    del readers["transformers batched_mm"]
    report(f"prompt of {args.prompt}", "tokens/s", interleave(readers, args.rounds), "coterie")
    writers = _sides(model, prompt[:64], args.tokens)
    report("decode, one sequence", "tokens/s", interleave(writers, args.rounds), "coterie")


def _sides(model: Transformer, prompt: list[int], n_tokens: int) -> dict[str, Side]:
    """The speed at which each side reads the prompt, or with `n_tokens` that at which it goes on."""
    theirs, ids = mixtral_of_transformers(model), torch.tensor([prompt])

    def speed(start: float, read: float) -> float:
        return n_tokens / (time.perf_counter() - read) if n_tokens else len(prompt) / (read - start)

    @torch.inference_mode()
    def ours() -> float:
        runner, start = Runner(model), time.perf_counter()
        *_, last = runner.feed_all(0, prompt)
        token = int(runner.logits(last.hidden_TD[-1:]).argmax())
        read = time.perf_counter()
        for _ in range(n_tokens):
            token = int(runner.logits(runner.step([token]).hidden_TD).argmax())
        return speed(start, read)

    @torch.inference_mode()
    def transformers(backend: str) -> float:
        theirs.set_experts_implementation(BACKENDS[backend])
        start = time.perf_counter()
        out = theirs(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        read = time.perf_counter()
        theirs.set_experts_implementation(backend)
        for _ in range(n_tokens):
            out = theirs(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return speed(start, read)

    sides: dict[str, Side] = {"coterie": ours}
    for backend in BACKENDS:
        sides[f"transformers {backend}"] = lambda b=backend: transformers(b)  # type: ignore[misc]
    return sides


if __name__ == "__main__":
    main()
