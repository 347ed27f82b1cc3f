"""`coterie serve` beside llama-server on the same file and load, and beside its own engine without a server.

Writes a Q4_0 GGUF file of Mixtral's widths (4 layers: 3.4 GB), uses it, removes it; --model measures another file and
leaves it. Every server is a process of its own with as many threads, asked by the client of `coterie bench serve` for
greedy answers of a fixed length to random token ids, other ones in each round. llama-server is the program that
COTERIE_LLAMA_SERVER names (a CMake target of llama.cpp); without it that side is left out. Rows: chats (8 at once), own
(the engine's own cost), prefix (a second question on a long system prompt), routing (experts in the stream), speculate
(drafts from the text itself).
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import arguments, machine, mixtral_config
from served import Ours, Peer, Server, Wave
from synthetic import write_synthetic

import coterie
from coterie import CoterieError
from coterie.bench.prompts import Prompt
from coterie.checkpoint.atomic import require_disk
from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams
from coterie.engine.runner import Runner

ROWS = ("chats", "own", "prefix", "routing", "speculate")
COPIED = "Le petit chat noir dort sur le tapis rouge, et la grande maison blanche est au bord de la mer. "


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "coterie", "benchmarks")
    parser.add_argument("--model", help="measure this model instead, and leave it; a .gguf file where there is a peer")
    parser.add_argument("--llama-server", default=os.environ.get("COTERIE_LLAMA_SERVER"), help="the peer's program")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which (default: {','.join(ROWS)})")
    parser.add_argument("--folder", type=Path, default=cache, help=f"for the file (default: {cache})")
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: 4)")
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this: a quick look whether it runs")
    parser.add_argument("--chats", type=int, default=8, help="at once (default: 8)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each (default: 128)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default: 64)")
    parser.add_argument("--system", type=int, default=2000, help="tokens of the long system prompt (default: 2000)")
    parser.add_argument("--threads", type=int, default=2, help="of each server (default: 2)")
    parser.add_argument("--copy-model", default="demo", help="a trained model for `speculate` (default: demo)")
    args = parser.parse_args(argv)
    rows = args.rows.split(",")
    if wrong := set(rows) - set(ROWS):
        parser.error(f"--rows has {', '.join(sorted(wrong))}, expected some of {','.join(ROWS)}")
    torch.set_num_threads(args.threads)
    path = Path(args.model or args.folder / f"synthetic-{args.layers}-{args.scale}.gguf")
    try:
        if args.model is None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            require_disk(path, 900_000_000 * args.layers // args.scale)
            write_synthetic(path, mixtral_config(args.layers, args.scale))
        print(f"{args.model or path.name}, {machine()}", flush=True)
        _measure(args.model or str(path), args, rows)
    except CoterieError as e:
        sys.exit(f"{Path(__file__).name}: {e}")
    finally:
        if args.model is None:
            path.unlink(missing_ok=True)


def _measure(source: str, args: Any, rows: Sequence[str]) -> None:
    if not args.llama_server:
        print("no peer: COTERIE_LLAMA_SERVER names no llama-server", flush=True)
    has_peer = args.llama_server and set(rows) & {"chats", "prefix"}
    with Ours(source, args.threads) as ours:
        peer = Peer(args.llama_server, source, args.threads, args.chats, _context(args)) if has_peer else None
        try:
            if "chats" in rows:
                _chats(ours, peer, args)
            if "prefix" in rows:
                _prefix(ours, peer, args)
        finally:
            if peer is not None:
                peer.close()
        if "own" in rows:
            _own(ours, coterie.load(source), args)
        if "routing" in rows:
            _routing(ours, args)
    if "speculate" in rows:
        _speculate(source, args)
        if args.copy_model != source:
            _speculate(args.copy_model, args)


def _context(args: Any) -> int:
    """Of one chat of the peer's."""
    return -(-max(args.prompt + args.tokens, args.system + args.tokens + 64) // 256) * 256


def _chats(ours: Server, peer: Server | None, args: Any) -> None:
    sides: dict[str, Callable[[list[Prompt]], Wave]] = {"coterie": ours.ask}
    if peer is not None:
        sides["llama-server"] = peer.ask
    found = _in_turn(sides, lambda: ours.prompts(args.chats, args.prompt, args.tokens), args.rounds)
    title = f"{args.chats} chats at once, prompts of {args.prompt}, answers of {args.tokens}"
    _report(title, "tokens/s in all", found, lambda w: w.rate)
    _report(title, "decode when all write, tokens/s in all", found, lambda w: w.decode_rate)
    _report(title, "first token, ms, mean", found, lambda w: w.first_ms, higher_is_better=False)


def _own(ours: Server, lm: coterie.LanguageModel, args: Any) -> None:
    """The same prompts without a server: whole, and steps of all chats together, at the same lengths."""
    sides: dict[str, Callable[[list[Prompt]], Wave]] = {
        "served": ours.ask,
        "Engine": lambda prompts: _through_engine(lm, prompts),
        "Runner": lambda prompts: _through_runner(lm, prompts),
    }
    found = _in_turn(sides, lambda: ours.prompts(args.chats, args.prompt, args.tokens), args.rounds)
    title = f"{args.chats} chats at once, with and without a server"
    whole = {name: found[name] for name in ("served", "Engine")}
    _report(title, "tokens/s in all", whole, lambda w: w.rate)
    _report(title, "decode when all write, tokens/s in all", found, lambda w: w.decode_rate)


def _through_engine(lm: coterie.LanguageModel, prompts: Sequence[Prompt]) -> Wave:
    """Token by token as the worker would, with text, without anybody to send it to."""
    engine = Engine(lm.model, lm.tokenizer, max_live=len(prompts))
    began, times = time.perf_counter(), [list[float]() for _ in prompts]
    for p in prompts:
        params = SamplingParams(max_tokens=p.body["max_tokens"], ignore_eos=True)
        engine.add(Request(tuple(p.body["prompt"]), params))
    while not engine.is_idle:
        events, at = engine.step(), time.perf_counter()
        for event in events:
            if event.token_id is not None:
                times[event.request].append(at)
    return Wave(began, times)


def _through_runner(lm: coterie.LanguageModel, prompts: Sequence[Prompt]) -> Wave:
    """Bare forward passes: prompts one after the other, then steps of all, each token the likeliest."""
    runner, began = Runner(lm.model), time.perf_counter()
    ids, times = [], [list[float]() for _ in prompts]
    for slot, p in enumerate(prompts):
        *_, last = runner.feed_all(slot, p.body["prompt"])
        ids.append(int(runner.logits(last.hidden_TD[-1:]).argmax()))
    for step in range(prompts[0].body["max_tokens"]):
        if step:
            ids = runner.logits(runner.step(ids).hidden_TD).argmax(-1).tolist()
        for written in times:
            written.append(time.perf_counter())
    return Wave(began, times)


def _prefix(ours: Server, peer: Server | None, args: Any) -> None:
    """Two questions on one long beginning, which is another one in every round."""
    servers = {"coterie": ours} | ({} if peer is None else {"llama-server": peer})
    ratios: dict[str, list[float]] = {name: [] for name in servers}
    firsts: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for i in range(args.rounds + 1):
        system, one, two = (ours.ids(n) for n in (args.system, 20, 20))
        for name in servers if i % 2 else reversed(servers):
            waves = [servers[name].ask([Prompt({"prompt": system + q, "max_tokens": 4})]) for q in (one, two)]
            first, second = (w.first_ms for w in waves)
            if i:
                ratios[name].append(first / second)
                firsts[name].append((first, second))
    print(f"two questions on a system prompt of {args.system} tokens: first token, ms; how much sooner")
    for name in servers:
        first, second = (statistics.median(f[k] for f in firsts[name]) for k in (0, 1))
        print(f"  {name:<28} {first:10.1f} {second:10.1f} {statistics.median(ratios[name]):10.2f} times")
    print(flush=True)


def _routing(ours: Server, args: Any) -> None:
    sides: dict[str, Callable[[list[Prompt]], Wave]] = {
        "experts in the stream": lambda prompts: ours.ask(prompts, return_routing="stream"),
        "none": ours.ask,
    }

    def prompts() -> list[Prompt]:  # short, so that what the cache keeps of the other side's is nothing
        return ours.prompts(args.chats, 8, args.tokens)

    found = _in_turn(sides, prompts, args.rounds)
    title = f"{args.chats} chats at once, with experts in the stream"
    _report(title, "decode when all write, tokens/s in all", found, lambda w: w.decode_rate)


def _speculate(source: str, args: Any) -> None:
    """One chat whose text repeats itself, on a server that drafts and on one that does not."""
    drafted = "coterie_spec_decode_num_draft_tokens_total", "coterie_spec_decode_num_accepted_tokens_total"
    with Ours(source, args.threads) as off, Ours(source, args.threads, "--speculate") as on:

        def prompts() -> list[Prompt]:
            text = f"{random.random()} " + COPIED * 4
            return [Prompt({"prompt": text, "max_tokens": 4 * args.tokens})]

        found = _in_turn({"drafts": on.ask, "none": off.ask}, prompts, args.rounds)
        n_drafted, n_accepted = (on.metric(name) for name in drafted)
        same = all(a.texts == b.texts for a, b in zip(found["drafts"], found["none"], strict=True))
    _report(f"one chat that repeats itself, {source}", "tokens/s", found, lambda w: w.rate)
    print(f"  {n_accepted:.0f} of {n_drafted:.0f} drafted tokens came true; texts equal: {same}\n", flush=True)


def _in_turn(
    sides: dict[str, Callable[[list[Prompt]], Wave]], prompts: Callable[[], list[Prompt]], rounds: int
) -> dict[str, list[Wave]]:
    """Every side on the same prompts in every round, every second round backwards; the first warms up."""
    found: dict[str, list[Wave]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        asked = prompts()
        for name in sides if i % 2 else reversed(sides):
            wave = sides[name](asked)
            if i:
                found[name].append(wave)
    return found


def _report(
    title: str, unit: str, found: dict[str, list[Wave]], figure: Callable[[Wave], float], higher_is_better: bool = True
) -> None:
    """Medians; the ratio is the median of the rounds' ratios, since a machine may change between rounds."""
    print(f"{title} ({unit})")
    values = {name: [figure(w) for w in waves] for name, waves in found.items()}
    for name, of_rounds in values.items():
        print(f"  {name:<28} {statistics.median(of_rounds):10.2f}")
    ours, *others = values
    for name in others:
        ratio = statistics.median(a / b for a, b in zip(values[ours], values[name], strict=True))
        print(f"  {f'{ours} / {name}':<28} {ratio:10.3f}{'' if higher_is_better else ', lower is better'}")
    print(flush=True)


if __name__ == "__main__":
    main()
