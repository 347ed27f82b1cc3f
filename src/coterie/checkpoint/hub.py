"""Finding a model on this machine: the one that ships, a folder, or a repository in the Hugging Face cache.

Nothing is downloaded here (`download.py` does that) and huggingface-hub is imported only to ask where its cache is.
"""

import os
import re
from pathlib import Path

from coterie.errors import CheckpointError, DownloadError

__all__ = ["DEMO", "cache_folder", "cached_snapshot", "check_repository_name", "find_model"]

DEMO = Path(__file__).resolve().parent.parent / "demo"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


def find_model(source: str | Path | None = None) -> Path:
    """The folder or file of a model that is already here; nothing is downloaded.

    `source`: None or "demo" for the model that ships, a folder or file, or `org/name` (`org/name:FILE.gguf`) in the
    Hugging Face cache. A folder of that name wins over the cache. Raises `CheckpointError`, or `DownloadError` where
    `coterie pull` would help.
    """
    if source is None or source == "demo":
        if not (DEMO / "config.json").is_file():
            raise CheckpointError(
                f"{DEMO}: the model that ships is not in this installation; install coterie again or name a model"
            )
        return DEMO
    text = str(source)
    if "\0" in text or not text:
        raise CheckpointError(f"{text!r} is not the name of a model, expected a folder, a .gguf file, org/name or demo")
    path = Path(os.path.expanduser(source))  # unlike Path's own, at a loss for no user's name
    if path.exists():
        return path
    name, _, file = text.partition(":")
    if not isinstance(source, str) or not _is_repository_name(name) or ".." in file:
        raise CheckpointError(
            f"{text}: there is no such folder or file; a model is a folder, a .gguf file, org/name in the "
            "Hugging Face cache, or demo"
        )
    snapshot = cached_snapshot(name)
    if snapshot is None:
        raise DownloadError(
            f"{name} is neither a folder here nor in the Hugging Face cache; fetch it with: coterie pull {name}"
        )
    if file and not (snapshot / file).is_file():
        raise DownloadError(
            f"{file} of {name} is not in the Hugging Face cache; fetch it with: coterie pull {name} --file {file}"
        )
    return snapshot / file if file else snapshot


def cached_snapshot(name: str, revision: str = "main") -> Path | None:
    """The snapshot folder of `org/name` in the Hugging Face cache, or None; the newest where the revision is absent."""
    folder = cache_folder(name)
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    snapshots = folder / "snapshots"
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    try:
        return max((p for p in snapshots.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime, default=None)
    except OSError:
        return None


def cache_folder(name: str) -> Path:
    """Where the Hugging Face cache keeps `org/name`, there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"


def check_repository_name(name: str) -> str:
    """`name` if it is of the form org/name as the hub allows it; else `DownloadError`."""
    if not _is_repository_name(name):
        raise DownloadError(
            f"{name!r} is not a repository of the hub, expected ORG/NAME of letters, digits, '-', '_' and '.', "
            "for example mistralai/Mixtral-8x7B-Instruct-v0.1"
        )
    return name


def _is_repository_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and ".." not in name and "--" not in name and all(_NAME.fullmatch(part) for part in parts)
