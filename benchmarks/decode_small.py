"""Decode speed of one sequence on the model that ships, beside transformers with each of its experts backends.

Both sides continue the same prompt greedily through their public `generate`; transformers also by a bare loop over its
forward, which is its fastest way. The prompt's own time is taken off by a run of one token. A packed model, as the
one that ships is, is loaded as plain weights, so that both sides run on the very same tensors.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from peers import arguments, interleave, machine, mixtral_of_transformers, report

import coterie
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.hub import find_model
from coterie.device import choose_dtype

PROMPT = "Il était une fois une petite fille qui vivait avec sa mère dans un village."


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--model", default="demo", help="what to load (default: demo)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a run (default: 128)")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16 (default: auto)")
    args = parser.parse_args(argv)
    dtype = choose_dtype(args.dtype, open_checkpoint(find_model(args.model)).file_dtype)
    lm = coterie.load(args.model, dtype=str(dtype).removeprefix("torch."), device="cpu")
    written = lm.generate(prompt := lm.tokenizer.encode(PROMPT, bos=True), max_tokens=args.tokens).usage
    if written.completion_tokens < args.tokens:
        parser.error(f"the text ends after {written.completion_tokens} tokens; use a smaller --tokens")
    print(f"{args.model}, {lm.model.dtype}, prompt of {len(prompt)} and {args.tokens} new tokens, {machine()}")
    medians = interleave(_sides(lm, prompt, args), args.rounds)
    report("decode, one sequence", "tokens/s", medians, "coterie generate")


def _sides(lm: coterie.LanguageModel, prompt: list[int], args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    theirs, n, ids = mixtral_of_transformers(lm.model), args.tokens, torch.tensor([prompt])

    def generate(k: int) -> None:
        options = {"do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        theirs.generate(ids, max_new_tokens=k, min_new_tokens=k, **options)

    @torch.inference_mode()
    def loop(k: int) -> None:
        out = theirs(ids, use_cache=True, logits_to_keep=1)
        for _ in range(k - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = theirs(token, past_key_values=out.past_key_values, use_cache=True)

    def with_backend(backend: str, run: Callable[[int], None]) -> float:
        theirs.set_experts_implementation(backend)
        return _rate(run, n)

    sides: dict[str, Callable[[], float]] = {
        "coterie generate": lambda: _rate(lambda k: lm.generate(prompt, max_tokens=k), n)
    }
    for backend in ("eager", "grouped_mm", "batched_mm"):
        sides[f"transformers loop {backend}"] = lambda b=backend: with_backend(b, loop)  # type: ignore[misc]
    sides["transformers generate eager"] = lambda: with_backend("eager", generate)
    return sides


def _rate(run: Callable[[int], object], n: int) -> float:
    """Tokens a second after the first: the run of one token is taken off."""
    start = time.perf_counter()
    run(1)
    middle = time.perf_counter()
    run(n)
    return (n - 1) / ((time.perf_counter() - middle) - (middle - start))


if __name__ == "__main__":
    main()
