"""What every format comes to: a checked `Checkpoint`, its tensors matched with the places that they fill."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coterie.checkpoint.names import Naming, Place, file_shape, n_places, part_of, places
from coterie.checkpoint.numbers import CODES, FILE_DTYPES
from coterie.checkpoint.safetensors import Entry
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, RequestError

__all__ = ["Checkpoint", "list_names", "main_code", "match", "require_plain_router"]

_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """A checked model. `places` says for each entry, in the order of the files' bytes, what it fills."""

    path: Path
    format: Literal["huggingface", "mistral", "gguf", "packed"]
    naming: Naming
    config: ModelConfig
    entries: tuple[Entry, ...]
    places: tuple[Place, ...]
    tied_copy: Entry | None = None  # a repetition of tied embeddings, to be compared with them

    @property
    def file_dtype(self) -> str:
        """The type (torch's name) of most of the weights' bytes; bfloat16 for quantised ones."""
        return FILE_DTYPES.get(main_code(self.entries), "bfloat16")

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files in the order of their names."""
        copies = [self.tied_copy] if self.tied_copy else []
        return tuple(sorted({e.file for e in (*self.entries, *copies)}))

    @property
    def nbytes(self) -> int:
        return sum(e.nbytes for e in self.entries)

    @property
    def listed(self) -> tuple[Entry, ...]:
        """The tensors as the files have them."""
        return self.entries

    def stored(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Part of the model ("experts") -> type in the files ("Q4_K") -> (numbers, bytes)."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for entry, place in zip(self.entries, self.places, strict=True):
            types = found.setdefault(part_of(place.name), {})
            n, nbytes = types.get(entry.dtype, (0, 0))
            types[entry.dtype] = n + entry.n_elements, nbytes + entry.nbytes
        return found


def match(
    path: Path, shapes: dict[str, tuple[int, ...]], config: ModelConfig, naming: Naming
) -> dict[str, list[Place]]:
    """Each name of the files with the places that it fills; whatever is missing, extra or misshapen is one error."""
    n_expected = n_places(config, naming)
    if (
        n_expected > 2 * sum(map(_most_places, shapes.values())) + 1000
    ):  # no list of millions for a hostile configuration
        raise CheckpointError(
            f"{path}: the configuration asks for {n_expected:,} tensors, the files hold {len(shapes):,}"
        )
    expected: dict[str, list[Place]] = {}
    for name, place in places(config, naming):
        expected.setdefault(name, []).append(place)
    missing = [name for name in expected if name not in shapes]
    extra = sorted(name for name in shapes if name not in expected)
    misshapen = [
        f"{name} {list(shapes[name])}, expected {list(wanted)}"
        for name, filled in expected.items()
        if name in shapes and shapes[name] != (wanted := file_shape(name, filled))
    ]
    problems = [
        f"{len(names)} {kind} ({list_names(names)})"
        for kind, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: the tensors do not fit the configuration: {'; '.join(problems)}")
    return expected


def require_plain_router(checkpoint: Checkpoint, to: str) -> None:
    """`RequestError` for a model with a router that files of the kind `to` ("GGUF files") have no word for."""
    router = checkpoint.config.router
    if not router.is_plain:
        raise RequestError(
            f"{checkpoint.path} has the router {router.kind!r}, and {to} hold only models with Mixtral's own: "
            "keep it as a Hugging Face folder"
        )


def list_names(names: list[str]) -> str:
    """The first few of them; a line break in a name stays inside the sentence."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, and {len(names) - _SHOWN} more"


def main_code(entries: Iterable[Entry]) -> str:
    """The file's type of most of the weights' bytes."""
    size: Counter[str] = Counter({code: 0 for code in CODES.values()})
    for entry in entries:
        size[entry.dtype] += entry.nbytes
    return max(size, key=lambda code: size[code])


def _most_places(shape: tuple[int, ...]) -> int:
    """How many places a tensor may fill: one an expert, where it holds those of a layer."""
    return shape[0] if len(shape) == 3 else 1
