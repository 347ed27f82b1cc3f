"""SHA256SUMS: one line a file, as `sha256sum` writes and `sha256sum -c` reads it.

A name with a backslash or a line break is written escaped, with a backslash before the digest; since such a name has no
place in a model folder, reading one is an error.
"""

import re
from pathlib import Path

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.checkpoint.inside import inside
from coterie.errors import CheckpointError

__all__ = ["MANIFEST", "files_of", "read_manifest", "save_manifest"]

MANIFEST = "SHA256SUMS"
_LARGEST = 16 << 20
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def read_manifest(folder: Path) -> dict[str, str]:
    """File name -> digest (lower case). `CheckpointError` where a line of it cannot be trusted."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is larger than a manifest can be")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; expected lines as sha256sum writes them") from None
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(f"{path}, line {number}: expected 64 hexadecimal digits, two spaces and a file name")
        digest, name = match[1].lower(), str(inside(path, match[2]).relative_to(folder).as_posix())
        if digests.setdefault(name, digest) != digest:
            raise CheckpointError(f"{path}, line {number}: {name!r} is listed twice with different digests")
    if not digests:
        raise CheckpointError(f"{path} lists no file")
    return digests


def save_manifest(folder: Path, digests: dict[str, str]) -> None:
    """Write the manifest of a folder, sorted by name, replacing an older one."""
    path = folder / MANIFEST
    with disk_errors(path), new_file(path) as f:
        f.write("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode())


def files_of(folder: Path) -> list[str]:
    """The names of a folder's files, those in folders below it included; not the manifest itself and nothing hidden."""
    names = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts != (MANIFEST,) and not any(part.startswith(".") for part in parts):
            names.append(path.relative_to(folder).as_posix())
    return names
