"""`coterie verify MODEL`: is a folder or .gguf file what its manifest says, and are the weights sound?"""

from dataclasses import asdict
from pathlib import Path

import click

from coterie.cli.model_argument import resolve_model
from coterie.cli.output import human_bytes, note, print_json, printable, progress

__all__ = ["command"]


@click.command("verify", short_help="Check a model against its sha256 manifest, and its weights for NaN.")
@click.argument("folder", metavar="MODEL")
@click.option(
    "--write", is_flag=True, help="Make the manifest (SHA256SUMS) of what is there now; damaged weights get none."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(folder: str, write: bool, as_json: bool) -> None:
    """Check every file of MODEL against its SHA256SUMS, and every weight for NaN and Inf.

    MODEL is a folder or a .gguf file. Fails where there is no manifest. `sha256sum -c SHA256SUMS` reads the same file.

    \b
    Example: coterie verify Mixtral-8x7B-v0.1
    """
    from coterie.checkpoint.verify import verify, write_manifest

    path = Path(resolve_model(folder))
    with progress("verifying") as report_progress:
        report = (write_manifest if write else verify)(path, progress=report_progress)
    if as_json:
        print_json({"folder": str(path), "ok": not report.problems, "written": write, **asdict(report)})
    for name in report.unlisted:
        note(f"not in the manifest: {printable(name)}")
    report.require_ok(path)
    if not as_json:
        what = "written" if write else "as the manifest says"
        size = human_bytes(report.n_bytes)
        print(f"{path}: {report.n_files} files, {size}, {what}; {report.n_tensors} tensors are sound")
