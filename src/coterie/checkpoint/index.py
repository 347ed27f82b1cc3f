"""model.safetensors.index.json: which file holds which tensor, taken literally and never followed out of the folder."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from coterie.checkpoint.inside import inside
from coterie.checkpoint.json_text import read_object
from coterie.checkpoint.safetensors import Entry, read_entries
from coterie.errors import CheckpointError

__all__ = ["indexed_entries"]


def indexed_entries(index: Path) -> list[Entry]:
    """The tensors of the files an index lists; `CheckpointError` where index and files disagree."""
    weight_map = read_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    entries = [e for name in sorted(set(weight_map.values())) for e in read_entries(_existing(index, name))]
    where: dict[str, str] = {}
    for entry in entries:
        if entry.name in where:
            raise CheckpointError(
                f"{index.parent}: the tensor {entry.name!r} is in both {where[entry.name]} and {entry.file.name}"
            )
        where[entry.name] = str(entry.file.relative_to(index.parent).as_posix())
    _compare(index, weight_map, where)
    return entries


def _existing(index: Path, name: str) -> Path:
    path = inside(index, name)
    if not path.is_file():
        raise CheckpointError(
            f"{index} lists {name!r}, and there is no such file; get it from where the model came from"
        )
    return path


def _compare(index: Path, listed: dict[str, str], found: dict[str, str]) -> None:
    def first(names: Iterable[str]) -> str:
        return min(names)

    if absent := listed.keys() - found.keys():
        name = first(absent)
        raise CheckpointError(
            f"{index} lists {len(absent)} tensors that are in no file, {name!r} in {listed[name]!r} first"
        )
    if unlisted := found.keys() - listed.keys():
        name = first(unlisted)
        raise CheckpointError(f"{index} misses {len(unlisted)} tensors of its files, {name!r} in {found[name]!r} first")
    if moved := [n for n, file in found.items() if PurePosixPath(listed[n]) != PurePosixPath(file)]:
        name = first(moved)
        raise CheckpointError(f"{index} says that {name!r} is in {listed[name]!r}; it is in {found[name]!r}")
