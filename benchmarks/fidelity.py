"""How far the logits of a quantised GGUF file are from those of its own numbers in float64, beside llama.cpp's.

KL divergence (nats a token) from a float64 model of the file's dequantised weights: what is measured is the arithmetic
(activations in 8 bits, keys and values in 16), not the quantisation. Two Q4_0 files: random weights that route
diversely, on random tokens; and the model that ships, on the valid texts of `$COTERIE_DATA/text` or else on our README.
llama.cpp runs in the Python that COTERIE_LLAMA_PYTHON names; without it that side is left out. Where rounding gives a
token another expert its logits jump, on either side: so the mean over the tokens whose experts could not change (the
closest choice in float64 is wider than CLEAR) is given beside the mean over all.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from cpu import Llama
from float64_model import Float64Model
from peers import machine
from synthetic import write_synthetic
from torch import Tensor

import coterie
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import DEMO
from coterie.config import ModelConfig
from coterie.kernels import cpu
from coterie.train.texts import read_texts

CLEAR = 0.02  # between the logits of the last expert that is chosen and the first that is not


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="measure this file alone, on random tokens")
    parser.add_argument("--windows", type=int, default=24, help="windows of tokens (default: 24)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window (default: 512)")
    parser.add_argument("--hidden", type=int, default=512, help="width of the random model (default: 512)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{machine()}, kernels {cpu.used()}\n")
    if args.gguf:
        compare(args.gguf.name, args.gguf, [], args)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.gguf")
        write_synthetic(path, small_config(args.hidden))
        compare("random weights, Q4_0", path, [], args)
        path = Path(folder, "demo.gguf")
        convert(DEMO, path, to="gguf", type="q4_0")
        compare("the model that ships, Q4_0", path, texts(), args)


def texts() -> list[Iterator[str]]:
    if data := os.environ.get("COTERIE_DATA"):
        return [read_texts(path) for path in sorted(Path(data, "text").glob("*.valid.jsonl.gz"))]
    return [iter([(Path(__file__).parents[1] / "README.md").read_text("utf-8")])]


def small_config(hidden: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=4000,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        max_position_embeddings=2048,
    )


def compare(title: str, path: Path, texts: list[Iterator[str]], args: argparse.Namespace) -> None:
    """Print mean, mean over clear tokens, median and agreement of the best token, for each side."""
    lm = coterie.load(path, device="cpu")
    reference = Float64Model(path)
    sides: dict[str, Callable[[list[int]], Tensor]] = {"coterie": lm.logits}
    peer = Llama(path, args.threads) if os.environ.get("COTERIE_LLAMA_PYTHON") else None
    if peer is not None:
        sides["llama.cpp"] = lambda ids: peer_logits(peer, ids)
    found: dict[str, list[Tensor]] = {name: [] for name in sides}
    clear: list[Tensor] = []
    for ids in windows(lm, texts, args.windows, args.length):
        true_TV, margin_T = reference(ids)
        clear.append(margin_T > CLEAR)
        for name, logits in sides.items():
            found[name].append(divergence(true_TV, logits(ids)))
    if peer is not None:
        peer.close()
    report(title, {name: torch.cat(rows) for name, rows in found.items()}, torch.cat(clear))


def windows(lm: coterie.LanguageModel, texts: list[Iterator[str]], n: int, length: int) -> list[list[int]]:
    """Token ids: random ones, or a window of each text in turn."""
    if not texts:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, lm.config.vocab_size, (n, length - 1), generator=generator).tolist()
        return [[1, *row] for row in ids]
    streams = [(i for piece in text for i in lm.tokenizer.encode(piece)) for text in texts]
    return [[1, *islice(streams[i % len(streams)], length - 1)] for i in range(n)]


def peer_logits(peer: Llama, ids: list[int]) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "logits.npy")
        peer.ask(logits=ids, out=str(path))
        return torch.from_numpy(np.load(path))


def divergence(true_TV: Tensor, logits_TV: Tensor) -> Tensor:
    """KL(true || ours) of each token and whether the best token is the same: float64 [T, 2]."""
    p, q = true_TV.log_softmax(-1), logits_TV.double().log_softmax(-1)
    is_same_T = true_TV.argmax(-1) == logits_TV.argmax(-1)
    return torch.stack(((p.exp() * (p - q)).sum(-1), is_same_T.double()), 1)


def report(title: str, found: dict[str, Tensor], clear_T: Tensor) -> None:
    print(f"{title}: KL from float64 over {len(clear_T)} tokens, {clear_T.double().mean():.0%} of them clear")
    means = {}
    for name, rows_T2 in found.items():
        kl_T, is_same_T = rows_T2.unbind(1)
        figures = (kl_T.mean(), kl_T[clear_T].mean(), kl_T.median())
        means[name] = figures[:2]
        text = ", ".join(f"{key} {v:.3e}" for key, v in zip(("mean", "clear", "median"), figures, strict=True))
        print(f"  {name:<10} {text}, same best token {is_same_T.mean():.2%}")
    if len(means) > 1:
        (all_a, clear_a), (all_b, clear_b) = means.values()
        print(f"  ours / llama.cpp: mean {all_a / all_b:.3f}, clear {clear_a / clear_b:.3f}")
    print(flush=True)


if __name__ == "__main__":
    main()
