"""`coterie bench`: `serve`, a load on any OpenAI-compatible server, under the names of vLLM's command.

The block goes to stdout, or with `--json` one document; progress and whatever failed go to stderr. Ctrl-C stops the
load and prints what there is.
"""

import asyncio
import json
import math
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.bench_tune import command as tune
from coterie.cli.output import note, print_json, printable, progress
from coterie.cli.plot_output import check_plot, write_plot
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.bench.load import Run
    from coterie.bench.measure import Plan

__all__ = ["command"]

_DEFAULT_PERCENTILES = "50,95,99"
_KEY = "COTERIE_BENCH_KEY"


@click.group("bench", epilog="Example: coterie bench serve --num-prompts 40 --max-concurrency 8")
def command() -> None:
    """Measure how fast models answer. `serve` loads a server as its users would; `tune` measures a card's tiles.

    \b
      coterie serve demo &
      coterie bench serve --random-input-len 200 --random-output-len 50
      coterie bench tune --shape 4096,14336,8,2
    """


command.add_command(tune)


class _Load(click.Command):
    """Takes `--goodput ttft:500 tpot:100` as vLLM does: words of that form after it belong to it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        taken: list[str] = []
        is_goal = False
        for arg in args:
            if is_goal and ":" in arg and not arg.startswith("-") and taken[-1] != "--goodput":
                taken.append("--goodput")
            is_goal = arg == "--goodput" or (is_goal and not arg.startswith("-"))
            taken.append(arg)
        return super().parse_args(ctx, taken)


@command.command("serve", cls=_Load)
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True, metavar="URL")
@click.option("--model", metavar="NAME", help="The name to ask for (default: the first that the server lists).")
@click.option("--endpoint", default="/v1/completions", show_default=True, help="Or /v1/chat/completions.")
@click.option("--num-prompts", type=click.IntRange(1, 1_000_000), default=100, show_default=True, metavar="N")
@click.option("--request-rate", type=float, default=math.inf, metavar="R", help="Requests a second, Poisson (inf).")
@click.option("--max-concurrency", type=click.IntRange(min=1), metavar="N", help="Most requests under way.")
@click.option("--random-input-len", type=click.IntRange(1, 1 << 20), default=1024, show_default=True, metavar="N")
@click.option("--random-output-len", type=click.IntRange(1, 1 << 20), default=128, show_default=True, metavar="N")
@click.option("--random-prefix-len", type=click.IntRange(0, 1 << 20), default=0, metavar="N", help="The same in all.")
@click.option("--random-range-ratio", type=click.FloatRange(0, 0.99), default=0.0, metavar="X", help="0.2: ±20 %.")
@click.option("--dataset", type=click.Path(path_type=Path), metavar="FILE", help='.jsonl of {"prompt": ...} instead.')
@click.option("--ignore-eos/--no-ignore-eos", default=None, help="Answers of full length (default: not of --dataset).")
@click.option("--num-warmups", type=click.IntRange(min=0), default=1, show_default=True, metavar="N")
@click.option("--seed", type=int, metavar="N", help="Of prompts and arrivals (default: another one each time).")
@click.option(
    "--goodput", multiple=True, metavar="NAME:MS...", help="Goals of ttft, tpot, e2el: --goodput ttft:500 tpot:100."
)
@click.option("--metric-percentiles", default=_DEFAULT_PERCENTILES, show_default=True, metavar="P,P...")
@click.option("--extra-body", metavar="JSON", help='Fields added to each request, as {"top_k": 5}.')
@click.option("--save-detailed", is_flag=True, help="With --json: the times, lengths and texts of each request.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the percentiles, as .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def serve(**options: Any) -> None:
    """Ask a server many things and say how long people waited: first token, between tokens, the whole; goodput.

    A key goes in the environment variable COTERIE_BENCH_KEY.

    \b
      coterie bench serve --num-prompts 200 --request-rate 4 --goodput ttft:500 tpot:100
      coterie bench serve --base-url http://127.0.0.1:8080 --max-concurrency 8 --json
      coterie bench serve --endpoint /v1/chat/completions --dataset questions.jsonl
    """
    from coterie.bench.figures import figures, goals_of, text_of

    percentiles, goals = _percentiles(options["metric_percentiles"]), goals_of(options["goodput"])
    plot: Path | None = options["plot"]
    check_plot(plot)
    plan = _plan(options)
    run, model = _measured(options["base_url"], plan)
    settings = {"date": time.strftime("%Y%m%d-%H%M%S"), "base_url": options["base_url"], **plan.settings(model)}
    result = {**settings, "is_stopped": run.is_stopped, **figures(run, goals, percentiles)}
    _say_failures(run)
    if options["as_json"]:
        print_json(result | (_detail(run) if options["save_detailed"] else {}))
    else:
        print(text_of(result, percentiles))
    if plot is not None and result["completed"]:
        _draw(run, plot)
    if run.is_stopped:
        raise click.exceptions.Exit(130)
    if not result["completed"]:
        raise RequestError("no request succeeded, so there is nothing to measure")


def _plan(options: dict[str, Any]) -> "Plan":
    from coterie.bench.measure import Plan
    from coterie.bench.prompts import Lengths

    names = ("random_input_len", "random_output_len", "random_prefix_len", "random_range_ratio")
    rate, seed, ignores = options["request_rate"], options["seed"], options["ignore_eos"]
    if not rate > 0:
        raise RequestError(f"--request-rate is {rate:g}, expected requests a second above 0, or inf for all at once")
    return Plan(
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        lengths=Lengths(*(options[name] for name in names)),
        n_prompts=options["num_prompts"],
        endpoint=options["endpoint"],
        model=options["model"],
        dataset=options["dataset"],
        rate=rate,
        max_concurrency=options["max_concurrency"],
        n_warmups=options["num_warmups"],
        ignore_eos=options["dataset"] is None if ignores is None else ignores,
        extra=_extra(options["extra_body"]),
    )


def _measured(url: str, plan: "Plan") -> "tuple[Run, str]":
    """The run and the model's name."""
    from coterie.bench.client import Client, Failure, Target
    from coterie.bench.measure import measure

    client = Client(Target.of(url), os.environ.get(_KEY) or None)
    _allow_sockets(plan.max_concurrency or plan.n_prompts)

    async def run() -> "tuple[Run, str]":
        with progress("asking", unit="requests") as report, _interruptible() as stop:
            return await measure(client, plan, report, stop)

    try:
        return asyncio.run(run())
    except Failure as e:
        raise RequestError(f"{url} cannot be measured: {printable(str(e))}") from None


def _allow_sockets(n: int) -> None:
    """As many as the load may have open at once, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + 64 if hard == resource.RLIM_INFINITY else min(n + 64, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """The event that the first Ctrl-C sets; the second one is as ever."""
    stop, loop, before = asyncio.Event(), asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def on_interrupt() -> None:
        note("stopping; once more leaves at once")
        stop.set()
        restore()

    def restore() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)

    try:
        loop.add_signal_handler(signal.SIGINT, on_interrupt)
    except (RuntimeError, ValueError):  # not the main thread: nobody's Ctrl-C comes here
        yield stop
        return
    try:
        yield stop
    finally:
        restore()


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= p <= 100 for p in found):
        raise RequestError(f"--metric-percentiles is {text!r}, expected numbers from 0 to 100 such as 50,95,99")
    return found


def _extra(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f'--extra-body is {text!r}, expected a JSON object such as {{"top_k": 5}}')
    return value


def _say_failures(run: "Run") -> None:
    """The commonest reasons, each with how often."""
    reasons = Counter(o.error for o in run.outcomes if o.error is not None)
    for reason, n in reasons.most_common(5):
        note(f"{n} failed: {printable(reason)}")
    if run.is_stopped:
        note(f"stopped after {len(run.outcomes)} of {run.n_asked} requests; those under way are not counted")


def _detail(run: "Run") -> dict[str, Any]:
    outcomes = run.outcomes
    return {
        "input_lens": [o.n_prompt for o in outcomes],
        "output_lens": [o.n_output for o in outcomes],
        "start_times": [o.started - run.began for o in outcomes],
        "ttfts": [o.ttft if o.error is None else None for o in outcomes],
        "itls": [o.itls for o in outcomes],
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error or "" for o in outcomes],
    }


def _draw(run: "Run", path: Path) -> None:
    """The curve of each metric: what so many per cent of the waits were at most."""
    from coterie.analysis.section import Plot
    from coterie.bench.figures import METRICS, percentile, samples

    x = [float(p) for p in range(0, 101)]
    found = {METRICS[name][1]: values for name, values in samples(run.outcomes).items() if values}
    series = {name: [percentile(values, p) for p in x] for name, values in found.items()}
    plot = Plot("lines", "How long people waited", "per cent of the waits", "milliseconds at most", list(x), series)
    write_plot(plot, path)
