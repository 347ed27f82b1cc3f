"""`coterie pull ORG/NAME`: a model from the Hugging Face hub into its cache, never a pickle."""

import click

from coterie.checkpoint.download import check_disk, plan
from coterie.checkpoint.transfer import fetch
from coterie.cli.output import human_bytes, note, print_json, printable, progress

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  coterie pull mistralai/Mixtral-8x7B-Instruct-v0.1
  coterie pull someone/Mixtral-GGUF --file mixtral.Q8_0.gguf    (or someone/Mixtral-GGUF:mixtral.Q8_0.gguf)
The folder is printed on stdout:
  coterie inspect "$(coterie pull mistralai/Mixtral-8x7B-v0.1)" """


@click.command(epilog=_EXAMPLES)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--file", metavar="NAME.gguf", help="Fetch this GGUF file in place of the safetensors.")
@click.option("--revision", metavar="REV", help="A branch, a tag or a commit; main when not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(repository: str, file: str | None, revision: str | None, as_json: bool) -> None:
    """Download a model from the Hugging Face hub into its cache.

    Safetensors, JSON and tokenizer files, and a GGUF file where you name one; never a pickle. The free disk is checked
    first, a broken download goes on where it stopped, and every weight file is checked against the hub's sha256. Needs
    `hf auth login` for a gated model; with HF_HUB_OFFLINE set it does nothing. Other programs share the cache.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    constants.HF_HUB_DISABLE_TELEMETRY = True  # or it asks the hub which AI agent may be running us, and reports it
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    repository, _, named = repository.partition(":")
    if file and named:
        raise click.UsageError(f"two GGUF files are named, {named!r} and {file!r}: name one")
    file = file or named or None
    wanted = plan(repository, file=file, revision=revision)
    for sentence in wanted.left_out:
        note(printable(f"left out {sentence}"))
    check_disk(wanted)
    note(f"{len(wanted.files)} files, {human_bytes(wanted.nbytes)}, into {wanted.snapshot}")
    with progress(f"pulling {repository}") as report:
        folder = fetch(wanted, report)
    if as_json:
        files = [{"name": f.name, "bytes": (folder / f.name).stat().st_size, "sha256": f.sha256} for f in wanted.files]
        print_json({"path": str(folder), "revision": wanted.revision, "commit": wanted.commit, "files": files})
    else:
        print(folder / file if file else folder)
