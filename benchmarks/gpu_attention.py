"""Attention over pages on a card: decoding in GB/s of keys and values, prompts in TFLOP/s, torch's beside them.

    python benchmarks/gpu_attention.py            # the shipped choices
    python benchmarks/gpu_attention.py --tiles    # other tiles too

Heads are those of Mixtral 8x7B. Layers take turns, so that no cache is left in L2; torch's attention is the fastest
that `scaled_dot_product_attention` has for contiguous keys, which a paged cache has to be copied into first.
"""

import argparse
from collections.abc import Callable

import torch
from card import is_missing
from torch.nn import functional
from triton.testing import do_bench_cudagraph

from coterie.kernels import reference, triton_decode_attention, triton_prompt_attention
from coterie.kernels.pages import PAGE, Pages
from coterie.kernels.triton_attention import Batch, attention

H, G, P = 32, 8, 128
TYPE = torch.bfloat16


def milliseconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    ms: float = do_bench_cudagraph(run, rep=20)  # on a stream of its own
    return ms


def pass_of(sequences: list[tuple[int, int]], kept: torch.dtype, n_layers: int) -> Callable[[], None]:
    """(first position, new rows) of each sequence."""
    device = torch.device("cuda")
    n_pages = max(-(-(first + n) // PAGE) for first, n in sequences)
    pages = Pages(n_layers, G, P, kept, device)
    pages.grow(len(sequences) * n_pages)
    for store in (*pages.k, *pages.v):
        store.random_(-100, 100) if kept == torch.int8 else store.normal_()
    for scales in (*pages.k_scales, *pages.v_scales):
        scales.fill_(0.01)
    tables = torch.randperm(len(sequences) * n_pages).int().view(len(sequences), n_pages)
    batch = Batch.of(tables, [(slot, *sequence) for slot, sequence in enumerate(sequences)], device)
    at = torch.tensor([p for first, n in sequences for p in range(first, first + n)], device=device)
    rotary = reference.rotary_tables(at, P, 1e6, torch.float32)
    qkv = torch.randn(len(at), H + 2 * G, P, device=device, dtype=TYPE)

    def run() -> None:
        for layer in range(n_layers):
            attention(qkv, rotary, pages, layer, batch, None)

    return run


def decode(n_sequences: int, length: int, kept: torch.dtype) -> str:
    n_bytes = n_sequences * length * 2 * G * P * kept.itemsize
    n_layers = max(1, min(16, int(4e8 / n_bytes)))
    ms = milliseconds(pass_of([(length, 1)] * n_sequences, kept, n_layers)) / n_layers
    return f"{n_sequences:3} x {length:6} {str(kept)[6:]:9} {ms * 1e3:8.1f} us  {n_bytes / ms / 1e6:7.0f} GB/s"


def prompt(n: int, first: int = 0) -> str:
    ms = milliseconds(pass_of([(first, n)], TYPE, 2)) / 2
    return f"{n:5} rows behind {first:6}  {ms:8.3f} ms  {flops(n, first) / ms / 1e9:6.0f} TFLOP/s"


def flops(n: int, first: int) -> float:
    return 4 * H * P * (n * first + n * (n + 1) / 2)


def torch_prompt(n: int) -> str:
    q, k, v = (torch.randn(1, heads, n, P, device="cuda", dtype=TYPE) for heads in (H, G, G))
    ms = milliseconds(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    return f"{n:5} rows, torch       {ms:8.3f} ms  {flops(n, 0) / ms / 1e9:6.0f} TFLOP/s"


def torch_decode(n_sequences: int, length: int) -> str:
    q, k, v = (torch.randn(n_sequences, heads, n, P, device="cuda", dtype=TYPE)
               for heads, n in ((H, 1), (G, length), (G, length)))  # fmt: skip
    ms = milliseconds(lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    return f"{n_sequences:3} x {length:6} torch     {ms * 1e3:8.1f} us  {k.nbytes * 2 / ms / 1e6:7.0f} GB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", action="store_true")
    arguments = parser.parse_args()
    if is_missing():
        return
    print(torch.cuda.get_device_name(), flush=True)
    for n_sequences, length in ((1, 1000), (1, 4096), (1, 32000), (8, 4096), (64, 2048)):
        print(decode(n_sequences, length, TYPE), flush=True)
    print(decode(64, 2048, torch.int8), torch_decode(1, 32000), torch_decode(64, 2048), sep="\n", flush=True)
    for n, first in ((512, 0), (2048, 0), (8192, 0), (512, 31000), (5, 31000)):
        print(prompt(n, first), flush=True)
    print(torch_prompt(2048), torch_prompt(8192), sep="\n", flush=True)
    if arguments.tiles:
        tiles()


def tiles() -> None:
    for queries, keys, warps, stages in (
        (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 3), (64, 64, 4, 2),
    ):  # fmt: skip
        tile = {"QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages}
        triton_prompt_attention._shape = lambda *_, tile=tile: tile
        print(tile, prompt(8192), flush=True)
    for warps, stages in ((4, 3), (4, 5), (8, 3), (2, 3)):
        tile = {"KEYS": 64, "num_warps": warps, "num_stages": stages}
        triton_decode_attention._shape = lambda *_, tile=tile: tile
        print(tile, decode(1, 4096, TYPE), decode(64, 2048, TYPE), sep="\n  ", flush=True)
    triton_decode_attention._shape = lambda *_: {"KEYS": 64, "num_warps": 4, "num_stages": 3}
    for n_splits in (8, 16, 32, 64):
        triton_decode_attention.n_splits_of = lambda *_, n=n_splits: n
        print(n_splits, "stretches", decode(1, 4096, TYPE), decode(1, 32000, TYPE), sep="\n  ", flush=True)
    for n_splits in (1, 2, 4):
        triton_decode_attention.n_splits_of = lambda *_, n=n_splits: n
        print(n_splits, "stretches", decode(64, 2048, TYPE), flush=True)


if __name__ == "__main__":
    main()
