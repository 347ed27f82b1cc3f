"""Decode speed of one sequence on the model that ships, beside transformers with each of its experts backends.

    python benchmarks/decode_small.py [--rounds 7] [--tokens 128]

Both sides continue the same 32 tokens greedily through their public `generate`; transformers also by a bare loop over
its forward, which is its fastest way. The prompt's own time is taken off by a run of one token.
"""

import argparse
import time

import torch
from peers import interleave, machine, mixtral_of_transformers, report

import coterie


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    lm = coterie.load(dtype=args.dtype)
    theirs = mixtral_of_transformers(lm.model)
    prompt = lm.tokenizer.encode(
        "Il était une fois une petite fille qui vivait avec sa mère dans un village.", bos=True
    )
    eos, n = lm.config.eos_ids[0], args.tokens

    def ours() -> float:
        return _rate(lambda k: lm.generate(prompt, max_tokens=k, stop_token_ids=None, logit_bias=None), n)

    def generate() -> float:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "pad_token_id": eos, "attention_mask": torch.ones_like(ids)}
        return _rate(lambda k: theirs.generate(ids, max_new_tokens=k, min_new_tokens=k, **options), n)

    @torch.inference_mode()
    def loop() -> float:
        def run(k: int) -> None:
            out = theirs(torch.tensor([prompt]), use_cache=True)
            for _ in range(k - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = theirs(token, past_key_values=out.past_key_values, use_cache=True)

        return _rate(run, n)

    def with_backend(backend: str, run) -> float:  # type: ignore[no-untyped-def]
        theirs.set_experts_implementation(backend)
        return run()

    sides = {"coterie generate": ours}
    for backend in ("eager", "grouped_mm", "batched_mm"):
        sides[f"transformers loop {backend}"] = lambda b=backend: with_backend(b, loop)
    sides["transformers generate eager"] = lambda: with_backend("eager", generate)
    written = lm.generate(prompt, max_tokens=n).usage.completion_tokens
    assert written == n, f"the text ended after {written} tokens; use a smaller --tokens"
    print(f"demo-size model, {lm.model.dtype}, {machine()}")
    report("decode, one sequence", "tokens/s", interleave(sides, args.rounds), "coterie generate")


def _rate(run, n: int) -> float:  # type: ignore[no-untyped-def]
    """Tokens a second after the first: the run of one token is taken off."""
    start = time.perf_counter()
    run(1)
    middle = time.perf_counter()
    run(n)
    return (n - 1) / ((time.perf_counter() - middle) - (middle - start))


if __name__ == "__main__":
    main()
