"""`coterie trace merge A B ... -o C`: several traces of one model as one."""

from pathlib import Path

import click

from coterie.cli.output import note, print_json, progress
from coterie.cli.trace_output import check_trace_output

__all__ = ["command"]


@click.command("merge", epilog="Example: coterie trace merge monday.trace tuesday.trace -o week.trace")
@click.argument("traces", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The trace to write.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(traces: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Put TRACES of one model into one file, documents in their order; domains of the same name become one.

    Traces of another model, or recorded in another way, are refused.
    """
    from coterie.analysis.trace import open_trace
    from coterie.analysis.trace_merge import merge_traces

    check_trace_output(output)
    with progress("merging", unit="tokens") as report:
        merge_traces(traces, output, report)
    merged = open_trace(output)
    if as_json:
        size = output.stat().st_size
        print_json({
            "trace": str(output), "merged": [str(path) for path in traces], "tokens": len(merged),
            "documents": merged.n_documents, "domains": merged.domains, "bytes": size,
        })  # fmt: skip
    else:
        note(f"{output} has {len(merged):,} tokens of {merged.n_documents:,} texts")
