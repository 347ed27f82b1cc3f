"""Time and peak memory of the statistics of a trace: one million tokens, six layers of 8 experts, 2 a token.

The trace is made up: five "languages" and "code" of 1,000-token documents, each with favourite experts, tokens that
follow each other alike. Each round reads it in a process of its own; medians. The targets are 10 s and 500 MB for all
that `coterie trace report` computes; drawing the page is timed apart, since it does not grow with the trace.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from peers import arguments

from coterie.analysis.trace import make_trace, open_trace

VOCABULARY, DOCUMENT = 8192, 1000
DOMAINS = ("de", "en", "es", "fr", "it", "python")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--child", type=Path, help="measure this trace once, as JSON (for the script's own use)")
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(measure(args.child)))
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "made-up.trace")
        make_up(path, args.tokens, args.layers, args.experts, args.top_k)
        runs = [child(path) for _ in range(args.rounds)]
    print(f"{args.tokens:,} tokens, {args.layers} layers, {args.experts} experts, {args.top_k} a token")
    for key, unit in (("statistics", "s"), ("caches", "s"), ("computed", "s"), ("pictures and page", "s"),
                      ("peak before pictures", "MB"), ("page", "MB")):  # fmt: skip
        print(f"  {key:<24} {median(run[key] for run in runs):8.2f} {unit}")


def child(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(path: Path) -> dict[str, float]:
    from coterie.analysis.caching import sections
    from coterie.analysis.report import draw, page
    from coterie.analysis.statistics import all_sections

    clock = [time.perf_counter()]
    trace = open_trace(path)
    found = all_sections(trace)
    clock.append(time.perf_counter())
    found += sections(trace)
    clock.append(time.perf_counter())
    peak = peak_bytes() / 1e6
    text = page("made up", [], found, draw(found))
    clock.append(time.perf_counter())
    first, second, third = np.diff(clock)
    return {
        "statistics": first, "caches": second, "computed": first + second, "pictures and page": third,
        "peak before pictures": peak, "page": len(text.encode()) / 1e6,
    }  # fmt: skip


def peak_bytes() -> int:
    try:  # ru_maxrss would begin with what the parent of this process had
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_up(path: Path, T: int, L: int, E: int, K: int) -> None:
    """A token's scores: what its piece likes, what its document's domain likes, noise that stays for a while."""
    rng = np.random.default_rng(0)
    documents_T = np.arange(T) // DOCUMENT
    domain_T = documents_T % len(DOMAINS)
    tokens_T = (rng.pareto(1.0, T) * 20).astype(np.int64) % VOCABULARY
    experts_TLK = np.empty((T, L, K), dtype=np.int16)
    for layer in range(L):
        of_piece, of_domain = rng.normal(size=(VOCABULARY, E)), 0.5 * rng.normal(size=(len(DOMAINS), E))
        noise_TE = rng.normal(size=(T // 4 + 1, E)).repeat(4, axis=0)[:T]
        scores_TE = of_piece[tokens_T] + of_domain[domain_T] + noise_TE
        experts_TLK[:, layer] = np.argsort(-scores_TE, axis=1)[:, :K]
    weights_TLK = np.sort(rng.dirichlet(np.ones(K), size=(T, L)).astype(np.float32), axis=-1)[..., ::-1]
    make_trace(
        path, experts_TLK=experts_TLK, weights_TLK=weights_TLK, token_ids=tokens_T, n_experts=E, documents=documents_T,
        domains=DOMAINS, domain_of_T=domain_T, guesses_TLK=np.where(np.arange(L)[:, None] == 0, -1, experts_TLK),
        pieces=[f"▁piece{n}" for n in range(VOCABULARY)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
