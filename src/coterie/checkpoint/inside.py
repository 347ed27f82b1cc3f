"""A name found in a file, as a path that stays in its folder.

A file that is itself a link may lead out of the folder only into the `blobs` of the same repository, because that is
how the Hugging Face cache stores what it downloaded.
"""

from pathlib import Path, PurePosixPath

from coterie.errors import CheckpointError

__all__ = ["inside"]


def inside(listing: Path, name: str) -> Path:
    """The path of `name`, which the file `listing` lists, in the folder of `listing`; the file need not exist."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or not name.isprintable() or "\\" in name:
        raise CheckpointError(f"{listing} points outside its folder: {name!r}; expected the name of a file in it")
    path = listing.parent / pure
    folder, target = listing.parent.resolve(), path.resolve()
    if folder in target.parents or folder.parent.parent / "blobs" in target.parents:
        return path
    raise CheckpointError(f"{listing} points outside its folder: {name!r} is a link to {target}; copy the file instead")
