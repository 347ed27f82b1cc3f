"""What recording costs: the same text read with and without a recorder, window by window, one side after the other.

    python benchmarks/trace_record.py                       the model that ships
    python benchmarks/trace_record.py --logits --tokens 50000

Reading is the forward pass alone, without the head; recording includes the model's fingerprint, the file, and
forcing it to disk: what a whole recording adds.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from peers import arguments, interleave, machine

import coterie
from coterie.analysis.trace import open_trace
from coterie.engine.record import Recorder, Window, read_windows
from coterie.engine.runner import Runner

TEXT = "Il était une fois un roi qui avait trois filles. The king had three daughters. def king(n):\n    return n\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--model", default="demo", help="what to load (default: demo)")
    parser.add_argument("--tokens", type=int, default=16384, help="of a round (default: 16384)")
    parser.add_argument("--window", type=int, default=512, help="tokens read together (default: 512)")
    parser.add_argument("--logits", action="store_true", help="record the router's logits too")
    args = parser.parse_args(argv)
    lm = coterie.load(args.model)
    windows = _windows(lm, args)
    print(f"{args.model}, {args.tokens} tokens in windows of {args.window}, {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.trace")
        medians = interleave(
            {"read": lambda: _read(lm, windows), "read and record": lambda: _record(lm, windows, path, args.logits)},
            args.rounds,
        )
        size = path.stat().st_size / len(open_trace(path))
    for name, seconds in medians.items():
        print(f"  {name:<20} {args.tokens / seconds:10.0f} tokens/s")
    plain, recorded = medians.values()
    print(f"  recording costs      {100 * (recorded / plain - 1):10.1f} %, the file has {size:.1f} bytes a token")


def _windows(lm: coterie.LanguageModel, args: argparse.Namespace) -> list[Window]:
    ids = lm.tokenizer.encode(TEXT)
    ids = (ids * (args.tokens // len(ids) + 1))[: args.tokens]
    return [Window(ids[at : at + args.window], "text") for at in range(0, len(ids), args.window)]


def _read(lm: coterie.LanguageModel, windows: Sequence[Window]) -> float:
    started, runner = time.perf_counter(), Runner(lm.model)
    for window in windows:
        runner.cache.clear(0)
        for _ in runner.feed_all(0, window.ids):
            pass
    return time.perf_counter() - started


def _record(lm: coterie.LanguageModel, windows: Sequence[Window], path: Path, logits: bool) -> float:
    started = time.perf_counter()
    with Recorder(lm, path, logits=logits) as recorder:
        for _ in read_windows(recorder, windows):
            pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
