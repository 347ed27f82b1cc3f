"""`coterie generate`: continue a text.

stdout gets the continuation and nothing else, as it comes; the line with counts and speed goes to stderr. `--routing`,
`--svg` and `--routing-page` show the prompt too, since its tokens went to experts as well.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.analysis.text_page import text_page
from coterie.cli.model_argument import load_with_bar
from coterie.cli.output import note, print_json
from coterie.cli.prompt_text import read_text
from coterie.cli.routed_stream import RoutedStream, choose_layer, routed_prompt
from coterie.cli.routing_view import coloured, console, legend, svg, table
from coterie.cli.sampling_options import parse_setting, speed

if TYPE_CHECKING:
    from coterie.api import Completion, Delta, LanguageModel
    from coterie.config import ModelConfig
    from coterie.tokenizer import Tokenizer

__all__ = ["command"]

_MIDDLE = "middle"


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "-m", "--model", default="demo", metavar="MODEL", help="A folder, a .gguf file, org/name in the cache; else demo."
)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file (else from stdin).")
@click.option("--max-tokens", type=int, metavar="N", help="Most new tokens (default 256).")
@click.option("-t", "--temperature", type=float, metavar="T", help="0, the default, always takes the likeliest token.")
@click.option("--seed", type=int, metavar="S", help="The same seed, the same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("-n", type=int, metavar="N", help="So many samples.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other parameter: top_p, top_k ...")
@click.option("--json", "as_json", is_flag=True, help="One document: text, tokens, log-probabilities, routing.")
@click.option(
    "--routing",
    is_flag=False,
    flag_value=_MIDDLE,
    metavar="[LAYER]",
    help="Colour each token by its first expert of a layer (default: the middle one); in a pipe, print a table.",
)
@click.option("--svg", "svg_file", type=click.Path(path_type=Path), help="Write the coloured text as a picture.")
@click.option("--routing-page", type=click.Path(path_type=Path), help="Write the coloured text as a page (HTML).")
def command(
    prompt: str | None,
    model: str,
    file: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    routing: str | None,
    svg_file: Path | None,
    routing_page: Path | None,
    **flags: Any,
) -> None:
    """Continue PROMPT (or a file, or stdin) and print what comes.

    \b
    coterie generate "Il était une fois"
    coterie generate "def main():" --temperature 0.8 --seed 1 --set top_p=0.95
    cat story.txt | coterie generate --json
    """
    if as_json and (svg_file or routing_page):
        raise click.UsageError(
            "--json prints a document and draws nothing: leave out --json, or --svg and --routing-page"
        )
    if prompt is None and routing is not None and routing != _MIDDLE and not _is_whole(routing):
        prompt, routing = routing, _MIDDLE  # `--routing "some text"`
    options = {name: value for name, value in flags.items() if value is not None and value != ()}
    options |= dict(parse_setting(s) for s in settings)
    text = read_text(prompt, file)
    lm = load_with_bar(model, _checks(text, options))
    if as_json:
        print_json(_document(lm, text, {"logprobs": 0, **options, "routing": True}))
    elif routing is not None or svg_file is not None or routing_page is not None:
        _show_routing(lm, text, options, routing, {"svg": svg_file, "html": routing_page})
    else:
        _print_text(lm, text, options)


def _checks(text: str, options: dict[str, Any]) -> "Callable[[ModelConfig, Tokenizer | None], None]":
    """What can be wrong without a model is said now, and what without its weights before they are read."""
    from coterie.engine.request import SamplingParams, check_text

    params = SamplingParams.of(options)
    check_text(text)

    def check(config: "ModelConfig", tokenizer: "Tokenizer | None") -> None:
        if tokenizer is not None:
            params.check_model(config, len(tokenizer.encode(text, bos=True)))

    return check


def _print_text(lm: "LanguageModel", text: str, options: dict[str, Any]) -> None:
    if options.get("n", 1) != 1:
        (first,) = lm.generate_many([text], **options)
        for number, sample in enumerate([first, *first.others], 1):
            print(f"--- sample {number} ---\n{sample.text}", flush=True)
        return
    clock = _Clock(len(lm.encode(text)))
    for delta in clock.timed(lm.stream(text, **options)):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    print(flush=True)
    note(clock.report())


def _show_routing(
    lm: "LanguageModel", text: str, options: dict[str, Any], routing: str | None, files: dict[str, Path | None]
) -> None:
    """The whole text, coloured on a terminal, as a table elsewhere; with `files` alone the plain continuation."""
    layer = choose_layer(lm, None if routing in (None, _MIDDLE) else routing)
    n_experts = lm.config.num_local_experts or 0
    screen = console()
    is_coloured, is_table = routing is not None and screen.is_terminal, routing is not None and not screen.is_terminal
    deltas = lm.stream(text, **{**options, "routing": True})  # checks before anything is printed
    ids = lm.encode(text)
    shown = routed_prompt(lm, ids, layer)
    if is_coloured:
        screen.print(*map(coloured, shown), sep="", end="")
    stream, clock = RoutedStream(lm, layer, ids), _Clock(len(ids))
    for delta in clock.timed(deltas):
        tokens = stream.push(delta)
        shown += tokens
        if is_coloured:
            screen.print(*map(coloured, tokens), sep="", end="")
        elif not is_table:
            print(delta.text, end="", flush=True)
    if is_coloured:
        screen.print("\n", legend(n_experts, layer), sep="\n")
    print(table(shown) if is_table else "", end="" if is_table else "\n")
    if (picture := files["svg"]) is not None:
        picture.write_text(svg(shown, n_experts, layer), encoding="utf-8")
    if (page := files["html"]) is not None:
        page.write_text(text_page(f"Routing of {lm.name}", shown, n_experts, layer), encoding="utf-8")
    note(clock.report())


class _Clock:
    """Counts tokens and seconds of a stream."""

    def __init__(self, n_prompt: int):
        self._n_prompt, self._n_new = n_prompt, 0
        self._start = self._first = self._last = time.perf_counter()

    def timed(self, deltas: "Iterable[Delta]") -> "Iterator[Delta]":
        for delta in deltas:
            self._last = time.perf_counter()
            if self._n_new == 0:
                self._first = self._last
            self._n_new += len(delta.token_ids)
            yield delta

    def report(self) -> str:
        return speed(self._n_prompt, self._n_new, self._first - self._start, self._last - self._first)


def _document(lm: "LanguageModel", text: str, options: dict[str, Any]) -> dict[str, Any]:
    (first,) = lm.generate_many([text], **options)
    prompt_ids = lm.encode(text)
    samples = [_sample(lm, c, prompt_ids) for c in (first, *first.others)]
    document = {"model": lm.name, "prompt": text, "prompt_tokens": _tokens(lm, prompt_ids), **samples[0]}
    return document | ({"others": samples[1:]} if first.others else {})


def _sample(lm: "LanguageModel", c: "Completion", prompt_ids: Sequence[int]) -> dict[str, Any]:
    tokens = _tokens(lm, c.token_ids, prompt_ids)
    for token, logprob in zip(tokens, c.logprobs or (), strict=False):  # none with logprobs=null
        token["logprob"] = logprob.logprob
        if logprob.top:
            token["top"] = [{"id": i, "text": lm.tokenizer.decode([i]), "logprob": v} for i, v in logprob.top]
    assert c.routing is not None
    usage = {**asdict(c.usage), "total_tokens": c.usage.total_tokens}
    return {
        "text": c.text,
        "finish_reason": c.finish_reason,
        "tokens": tokens,
        "routing": c.routing.to_json(),
        "usage": usage,
    }


def _tokens(lm: "LanguageModel", ids: Sequence[int], context_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Ids, pieces and what each adds to the text: nothing, where it only begins a character."""
    from coterie.tokenizer import TextStream

    stream = TextStream(lm.tokenizer, context_ids)
    pieces = [lm.tokenizer.piece(i) if i < lm.tokenizer.vocab_size else "" for i in ids]  # a model may have more ids
    tokens: list[dict[str, Any]] = [
        {"id": i, "piece": piece, "text": stream.push([i])} for i, piece in zip(ids, pieces, strict=True)
    ]
    if tokens:
        tokens[-1]["text"] += stream.finish()
    return tokens


def _is_whole(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit()
