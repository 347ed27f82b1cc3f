"""The sparse block of a few tokens, and products with packed weights, on a card: microseconds and share of bandwidth.

    python benchmarks/gpu_few.py                 # the shipped choices, bf16 to int2
    python benchmarks/gpu_few.py --tiles         # rows and warps of a program, too
    python benchmarks/gpu_few.py --kinds int4,q4_0

Shapes are Mixtral 8x7B's, 8 experts, 2 a token. Calls take turns among sets of experts, which are more than L2 holds.
Bandwidth is that of a copy in the same run, read and written; the first lines check a product at full size.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
from card import bandwidth, is_missing, numbers, random_stack
from torch.nn import functional
from triton.testing import do_bench, do_bench_cudagraph

from coterie.kernels import triton_experts, triton_linear
from coterie.kernels.packed import Packed

D, F, E, K = 4096, 14336, 8, 2
KINDS = ("bf16", "fp8", "int8", "int6", "int5", "int4", "q4_0", "int3", "int2")
CARD = torch.device("cuda")
TILES = {
    "gate_up": [(rows, warps) for rows, warps in itertools.product((2, 4, 8), (1, 2, 4)) if rows * warps <= 16],
    "down": [(rows, warps) for rows, warps in itertools.product((2, 4, 8), (1, 2, 4))],
}


def milliseconds(run: Callable[[], object]) -> float:
    try:
        return float(do_bench_cudagraph(run, rep=15))
    except RuntimeError:
        return float(do_bench(run, warmup=5, rep=15))


def ids_of(T: int) -> list[torch.Tensor]:
    """Sets of experts that take turns."""
    orders = [torch.randperm(E, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    sets = [row for order in orders for row in order.view(-1, K)]
    return [torch.stack(sets[i : i + T]).int().to(CARD) for i in range(0, len(sets), T)]


def block(kind: str, copy_gbs: float, with_tiles: bool) -> None:
    gate_up, down = random_stack(kind, (E, 2 * F, D)), random_stack(kind, (E, D, F))
    x = torch.randn(8, D, dtype=torch.bfloat16, device=CARD)
    weights = torch.full((8, K), 0.5, device=CARD)
    ids = ids_of(2)[0]
    y, rows = triton_experts.few(x[:2], ids, weights[:2], gate_up, down), []
    for t, experts in enumerate(ids.tolist()):
        out = torch.zeros(D, device=CARD)
        for e in experts:
            gate, up = (numbers(gate_up, e) @ x[t].float()).chunk(2)
            out += 0.5 * (numbers(down, e) @ (functional.silu(gate) * up))
        rows.append(out)
    expected = torch.stack(rows)
    wrong = float((y.float() - expected).norm() / expected.norm())
    n_bytes = sum(s.nbytes for s in (gate_up, down)) / E
    for T in (1, 2, 4):
        sets = ids_of(T)

        def run(sets: list[torch.Tensor] = sets, T: int = T, tiles: dict[str, tuple[int, int]] | None = None) -> None:
            for chosen in sets:
                triton_experts.few(x[:T], chosen, weights[:T], gate_up, down, tiles)

        us = milliseconds(run) * 1e3 / len(sets)
        read = n_bytes * sum(len(s.unique()) for s in sets) / len(sets)
        share = read / us / 1e3 / copy_gbs
        print(
            f"{kind:5} few T={T}  {us:8.1f} us  {read / us / 1e3:7.0f} GB/s  {share:4.0%} of a copy  error {wrong:.1e}"
        )
        if with_tiles and T == 1:
            for name, tiles in TILES.items():
                found = []
                for tile in tiles:
                    found.append((milliseconds(lambda t=tile, n=name: run(tiles={n: t})) * 1e3 / len(sets), tile))  # type: ignore[misc]
                print(f"      {name}: " + "  ".join(f"{tile} {us:.1f}" for us, tile in sorted(found)))


def products(kind: str, copy_gbs: float) -> None:
    for N, width in ((6144, D), (D, D), (32000, D)):
        stack = random_stack(kind, (1, N, width))
        assert isinstance(stack, Packed)
        copies = [stack, *(random_stack(kind, (1, N, width)) for _ in range(max(1, int(12e7 / stack.nbytes))))]
        times = []
        for T in (1, 2, 4, 16, 64, 256):
            x = torch.randn(T, width, dtype=torch.bfloat16, device=CARD)
            if T in (1, 4, 256):
                expected = x.float() @ stack.numbers(0).T
                wrong = float((triton_linear.linear(x, stack).float() - expected).norm() / expected.norm())
                assert wrong < 1e-2, (kind, N, T, wrong)

            def run(x: torch.Tensor = x, copies: list[torch.Tensor | Packed] = copies) -> None:
                for one in copies:
                    triton_linear.linear(x, one)  # type: ignore[arg-type]

            times.append((T, milliseconds(run) * 1e3 / len(copies)))
        shown = "  ".join(f"T={T} {us:.1f}" for T, us in times)
        share = stack.nbytes / times[0][1] / 1e3 / copy_gbs
        print(f"{kind:5} linear {N} x {width}: us at {shown}   {share:4.0%} of a copy at T=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    if is_missing():
        return
    torch.set_grad_enabled(False)
    copy_gbs = bandwidth() / 1e9
    print(f"{torch.cuda.get_device_name()}: a copy reads and writes {copy_gbs:.0f} GB/s", flush=True)
    for kind in options.kinds.split(","):
        block(kind, copy_gbs, options.tiles)
        torch.cuda.empty_cache()
        if kind in ("int8", "int4", "fp8"):
            products(kind, copy_gbs)


if __name__ == "__main__":
    main()
