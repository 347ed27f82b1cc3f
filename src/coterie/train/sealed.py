"""A folder that can prove it is what was written: manifest.json holds the size and sha256 of every file in it.

    {"format": "coterie training state", "version": 1, "step": 1200,
     "files": {"state.safetensors": {"bytes": 123456, "sha256": "..."}, ...}}

The manifest is written last, so a folder without one was never finished.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from coterie.checkpoint.atomic import new_file
from coterie.checkpoint.inside import inside
from coterie.checkpoint.json_text import parse_object
from coterie.errors import CheckpointError

__all__ = ["MANIFEST", "NewerFormatError", "check", "seal"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "coterie training state", 1
_LARGEST_MANIFEST = 16 << 20
_PIECE = 8 << 20


class NewerFormatError(CheckpointError):
    """A checkpoint that is sound, as far as can be told, and that a later version of the program wrote."""


def seal(folder: Path, step: int, digests: dict[str, str]) -> None:
    """Force every file to disk and write the manifest.

    `digests` are those sha256 that were taken from memory while a file was written; the others are taken from the disk.
    Raises `OSError`.
    """
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        _sync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": digests.get(name) or _digest(path)}
    manifest = {"format": _FORMAT, "version": _VERSION, "step": step, "files": files}
    with new_file(folder / MANIFEST) as out:
        out.write(json.dumps(manifest, indent=1).encode())


def check(folder: Path, step: int) -> None:
    """Read every file of a folder against its manifest; `CheckpointError` names the first that is not as it was."""
    path = folder / MANIFEST
    for name, wanted in _listed(path, step).items():
        file = inside(path, name)
        n_bytes, digest = _described(wanted, f"{path}: {name!r}")
        try:
            found = file.stat().st_size if file.is_file() else None
            if found is None:
                raise CheckpointError(f"{file} is missing")
            if found != n_bytes:
                raise CheckpointError(f"{file} has {found:,} bytes and was written with {n_bytes:,}")
            if _digest(file) != digest:
                raise CheckpointError(f"{file} is not what was written: its sha256 differs from the manifest's")
        except OSError as e:
            raise CheckpointError(f"{file} cannot be read: {e.strerror}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _listed(path: Path, step: int) -> dict[str, Any]:
    """The manifest's files, after the rest of it was found to be right."""
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise CheckpointError(f"{path} is larger than a manifest can be")
        manifest = parse_object(path.read_bytes(), str(path), CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    version, files = manifest.get("version"), manifest.get("files")
    if manifest.get("format") != _FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is not the manifest of a training state")
    if version > _VERSION:
        raise NewerFormatError(
            f"{path} has format version {version} and this program reads up to {_VERSION}; update coterie, or start "
            "again with --fresh"
        )
    if manifest.get("step") != step:
        raise CheckpointError(f"{path} speaks of step {manifest.get('step')!r} and its folder of step {step}")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path} lists no file")
    return files


def _described(value: Any, where: str) -> tuple[int, str]:
    match value:
        case {"bytes": int(n_bytes), "sha256": str(digest)}:
            return n_bytes, digest
    raise CheckpointError(f'{where} is {repr(value)[:80]}, expected {{"bytes": ..., "sha256": ...}}')


def _digest(path: Path) -> str:
    """sha256 of what the disk holds; where the system can, memory forgets the file first."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
