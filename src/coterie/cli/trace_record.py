"""`coterie trace record MODEL FILE...`: read text, write which experts read which token.

A text is read in windows that each start with BOS and an empty cache; the trace says which windows are of one text.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.output import human_bytes, note, print_json, print_table, printable, progress
from coterie.cli.trace_output import check_trace_output
from coterie.errors import DataError, RequestError

if TYPE_CHECKING:
    from coterie.api import LanguageModel
    from coterie.config import ModelConfig
    from coterie.engine.record import Recorder, Window
    from coterie.tokenizer import Tokenizer

__all__ = ["command"]

_LABELS = ("domain", "subject", "lang")
_WINDOW = 2048
_EXAMPLES = """\b
Examples:
  coterie trace record demo stories.txt code.jsonl.gz -o run.trace
  coterie trace record demo text/ --tokens 100000 --guess -o run.trace"""


@click.command("record", epilog=_EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The trace to write.")
@click.option(
    "--domain", metavar="NAME", help="Of all texts; else a row's domain, subject or lang, or the file's name."
)
@click.option(
    "--window", type=click.IntRange(2), metavar="N",
    help=f"Tokens that are read together (default: {_WINDOW}, or the context where it is shorter).",
)  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="At most so many of each file.")
@click.option("--logits", is_flag=True, help="Keep the router's logits too, in 16 bits.")
@click.option("--guess", is_flag=True, help="Keep what each router says to the input of the layer before; slower.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def command(
    model: str,
    files: tuple[Path, ...],
    output: Path,
    domain: str | None,
    window: int | None,
    tokens: int | None,
    logits: bool,
    guess: bool,
    as_json: bool,
) -> None:
    """Read FILEs (.txt, .jsonl, .parquet; .gz and .zst too; folders of them) with MODEL and record the routing.

    A trace holds expert ids and weights of every token in every layer, the tokens themselves, documents and domains;
    docs/traces.md has the format and how to read it from Python.
    """
    from coterie.cli.model_argument import load_with_bar
    from coterie.train.texts import files_below

    check_trace_output(output)
    paths = [path for file in files for path in files_below(file)]
    lm = load_with_bar(model, _checks(model, window))
    job = _Job(lm, paths, window or min(_WINDOW, lm.config.max_position_embeddings), domain, tokens)
    started = time.perf_counter()
    document = _record(job, output, logits=logits, guess=guess)
    document["seconds"] = round(time.perf_counter() - started, 3)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _checks(name: str, window: int | None) -> "Callable[[ModelConfig, Tokenizer | None], None]":
    from coterie.engine.record import require_recordable

    def check(config: "ModelConfig", tokenizer: "Tokenizer | None") -> None:
        require_recordable(config, name)
        limit = config.max_position_embeddings
        if window is not None and window > limit:
            raise RequestError(f"--window is {window}, but the context of {name} is {limit}: expected at most that")
        if tokenizer is None:
            raise RequestError(f"{name} has no tokenizer, so it reads no text: put its tokenizer into the folder")

    return check


@dataclass
class _Job:
    lm: "LanguageModel"
    paths: Sequence[Path]
    window: int
    domain: str | None
    most: int | None  # tokens of a file
    counts: dict[str, int] = field(default_factory=dict)  # tokens by domain

    def windows(self, seen: Callable[[int], None]) -> "Iterator[Window]":
        """Of all files; `seen(bytes read)`."""
        before = 0
        for path in self.paths:
            left = self.most
            for window in self._windows_of(path, before, seen):
                if left is not None:
                    window = replace(window, ids=window.ids[:left])
                    left -= len(window.ids)
                self.counts[window.domain] = self.counts.get(window.domain, 0) + len(window.ids)
                yield window
                if left == 0:
                    break
            before += path.stat().st_size
            seen(before)

    def _windows_of(self, path: Path, before: int, seen: Callable[[int], None]) -> "Iterator[Window]":
        from coterie.engine.record import Window
        from coterie.eval.text_files import domain_of
        from coterie.train.texts import read_rows

        tokenizer = self.lm.tokenizer
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        step = self.window - len(start)
        for row in read_rows(path, _LABELS, lambda n: seen(before + n)):
            domain = domain_of(row, path) if self.domain is None else self.domain
            ids = tokenizer.encode(row["text"])
            for first in range(0, len(ids), step):
                yield Window([*start, *ids[first : first + step]], domain, continues=first > 0)


def _record(job: _Job, output: Path, *, logits: bool, guess: bool) -> dict[str, Any]:
    from coterie.engine.record import Recorder, read_windows

    total = sum(path.stat().st_size for path in job.paths)
    with ExitStack() as stack:
        report = stack.enter_context(progress("recording"))
        recorder = stack.enter_context(Recorder(job.lm, output, logits=logits, guess=guess))
        for _ in read_windows(recorder, job.windows(lambda n: report(min(n, total), total))):
            pass
        if recorder.n_tokens == 0:
            raise DataError(f"there is no text in {', '.join(map(str, job.paths[:3]))}: nothing was recorded")
        document = _describe(job, recorder, output)
    size = output.stat().st_size
    return {**document, "bytes": size, "bytes_per_token": round(size / document["tokens"], 1)}


def _describe(job: _Job, recorder: "Recorder", output: Path) -> dict[str, Any]:
    form = recorder.form
    return {
        "trace": str(output), "model": form.model, "fingerprint": form.fingerprint, "layers": form.n_layers,
        "experts": form.n_experts, "experts_per_token": form.top_k, "window": job.window,
        "logits": form.has_logits, "guesses": form.has_guesses, "tokens": recorder.n_tokens,
        "documents": recorder.n_documents, "domains": dict(job.counts),
    }  # fmt: skip


def _print(document: dict[str, Any]) -> None:
    rows = [("domain", "tokens"), *((printable(name), f"{n:,}") for name, n in document["domains"].items())]
    print_table([*rows, ("all", f"{document['tokens']:,}")])
    size = f"{human_bytes(document['bytes'])}, {document['bytes_per_token']} bytes a token"
    note(f"{document['trace']} has the routing of {document['documents']:,} texts: {size}")
    note(f"see what it shows: coterie trace report {document['trace']}")
