"""The packed folder, opened: one safetensors file of ours, already in the kernels' layout; `docs/packed.md` states it.

Only the header is read; the weights are mapped, so a file of any size is open at once. The header is not trusted: every
format, shape, place and offset is checked against the file and the configuration before it is used, and every part of
the model must be what the recipe says, packed or plain for a reason that is given.
"""

import mmap
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.checkpoint.huggingface import config_from_json
from coterie.checkpoint.json_text import parse_object
from coterie.checkpoint.names import canonical_shapes, part_of
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch
from coterie.checkpoint.opened import Checkpoint, list_names
from coterie.checkpoint.safetensors import Entry, read_entries, read_header
from coterie.config import ModelConfig
from coterie.errors import CheckpointError
from coterie.quant.formats import SPAN, Format
from coterie.quant.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.quant.tensor import PackedTensor

__all__ = [
    "FORMAT",
    "LINE",
    "PAGE",
    "VERSION",
    "PackedCheckpoint",
    "PackedPart",
    "is_packed",
    "model_parts",
    "open_packed",
]

FORMAT, VERSION = "coterie-packed", "1"
PAGE, LINE = 4096, 64  # an expert's record starts at a multiple of the one, what lies in it at multiples of the other
_PAD = re.compile(r"_pad\.\d{1,9}")


@dataclass(frozen=True, slots=True)
class PackedPart:
    """A matrix of the model: `nbytes` bytes from byte `offset` (of the file); plain where `format` is None."""

    name: str
    part: str  # attention, experts, router, norms, embedding or head
    shape: tuple[int, ...]
    format: Format | None
    entry: Entry
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PackedCheckpoint(Checkpoint):
    """`parts` in the order of their names in the model; `about`: all that the file says of how it was made."""

    recipe: Recipe = field(kw_only=True)
    parts: tuple[PackedPart, ...] = field(kw_only=True)
    about: dict[str, Any] = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    def stored(self) -> dict[str, dict[str, tuple[int, int]]]:
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for p in self.parts:
            types = found.setdefault("feedforward" if p.part == "experts" else p.part, {})
            kind = p.entry.dtype if p.format is None else p.format.label
            n, nbytes = types.get(kind, (0, 0))
            types[kind] = n + int(np.prod(p.shape, dtype=np.int64)), nbytes + p.nbytes
        return found

    def tensors(self) -> "dict[str, PackedTensor | Tensor]":
        """What `quant.layers.install` takes, as pieces of the mapped file; they are read when they are used."""
        import torch

        from coterie.quant.tensor import PackedTensor

        (file,) = {p.entry.file for p in self.parts}
        try:
            with open(file, "rb") as f:
                raw = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except OSError as e:
            raise CheckpointError(f"{file} cannot be mapped: {e.strerror}") from None
        found: dict[str, PackedTensor | Tensor] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            for p in self.parts:
                if len(raw) < p.offset + p.nbytes:
                    raise CheckpointError(f"{file} became shorter while it was opened; get it again")
                piece = raw[p.offset : p.offset + p.nbytes]
                if p.format is None:
                    found[p.name] = as_torch(piece, p.entry.dtype).view(p.shape)
                else:
                    found[p.name] = PackedTensor(p.format, (p.shape[0], p.shape[1]), torch.from_numpy(piece))
        return found


def is_packed(folder: Path) -> bool:
    """Whether a folder's one weight file says that it is packed, in whatever version."""
    file = folder / "model.safetensors"
    if not file.is_file() or (folder / "model.safetensors.index.json").exists():
        return False
    metadata = read_header(file)[0].get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def open_packed(folder: Path) -> PackedCheckpoint:
    """Open and check a packed folder; `CheckpointError` or `ConfigError` say what is wrong."""
    file = folder / "model.safetensors"
    metadata = read_header(file)[0].get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file} is no packed file: its metadata has no format {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{file} is of version {metadata.get('version')!r:.40} of the packed format and only {VERSION!r} is known; "
            "update coterie, or convert the model anew"
        )
    config_text, about_text = (_text(metadata, key, file) for key in ("config", "recipe"))
    config = config_from_json(parse_object(config_text, f"{file} (config)", CheckpointError), f"{file} (config)")
    about = parse_object(about_text, f"{file} (recipe)", CheckpointError)
    recipe = Recipe.from_fields(about, str(file))
    entries = read_entries(file)
    parts = _Table(file, recipe, about, {e.name: e for e in entries}).parts(config)
    return PackedCheckpoint(
        folder, "packed", "huggingface", config, tuple(entries), (), recipe=recipe, parts=parts, about=about
    )


def model_parts(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, part, shape) of every matrix and vector, the experts one by one, in canonical order."""
    for name, shape in canonical_shapes(config):
        part = part_of(name)
        if ".experts." not in name:
            yield name, "experts" if part == "feedforward" else part, shape
            continue
        stem, _, last = name.rpartition(".")
        yield from ((f"{stem}.{e}.{last}", "experts", shape[1:]) for e in range(shape[0]))


def _text(metadata: dict[str, Any], key: str, file: Path) -> bytes:
    value = metadata.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{file}: the metadata has no {key!r}, expected JSON text; the file is damaged")
    return value.encode()


class _Table:
    """What the file says of its parts, held against what it holds and against what the model needs."""

    def __init__(self, file: Path, recipe: Recipe, about: dict[str, Any], entries: dict[str, Entry]):
        self.file, self.recipe, self.entries = file, recipe, entries
        self.packed, self.plain = self._named(about, "parts"), self._named(about, "plain")

    def parts(self, config: ModelConfig) -> tuple[PackedPart, ...]:
        n_experts = config.num_local_experts
        n_expected = config.num_hidden_layers * (9 if n_experts is None else 7 + 2 * n_experts)
        if n_expected > len(self.packed) + len(self.entries):  # before anything is listed for a hostile configuration
            raise CheckpointError(
                f"{self.file}: the configuration asks for {n_expected:,} matrices, the file has fewer"
            )
        expected = list(model_parts(config))
        names = {name for name, _, _ in expected}
        extra = [name for name in self.packed if name not in names]
        if extra:
            raise CheckpointError(f"{self.file}: parts that the model has not: {list_names(sorted(extra))}")
        found = tuple(self._part(*wanted) for wanted in expected)
        self._check_places(found)
        return found

    def _named(self, about: dict[str, Any], key: str) -> dict[str, Any]:
        table = about.get(key)
        if not isinstance(table, dict):
            raise CheckpointError(f"{self.file}: the recipe has no table {key!r}; the file is damaged, get it again")
        return table

    def _part(self, name: str, part: str, shape: tuple[int, ...]) -> PackedPart:
        format = self.recipe.format_of(part)
        if name not in self.packed:
            return self._plain_part(name, part, shape, is_planned=format is None)
        fields = self.packed[name]
        if format is None:
            raise self._refuse(name, f"packed, and the recipe keeps {part} as float32")
        if not isinstance(fields, dict) or sorted(fields) != ["offset", "shape", "tensor"]:
            raise self._refuse(name, f"{str(fields)[:80]}, expected tensor, offset and shape")
        entry = self.entries.get(fields["tensor"]) if isinstance(fields["tensor"], str) else None
        if entry is None or entry.dtype != "U8" or len(entry.shape) != 1:
            raise self._refuse(name, f"in {str(fields['tensor'])[:80]!r}, which is no U8 tensor of the file")
        if fields["shape"] != list(shape) or len(shape) != 2 or shape[1] % SPAN:
            raise self._refuse(name, f"of shape {str(fields['shape'])[:80]}, expected {list(shape)}")
        offset, nbytes = fields["offset"], format.matrix_bytes(shape[0], shape[1])
        if type(offset) is not int or offset < 0 or offset + nbytes > entry.nbytes:
            raise self._refuse(name, f"at {offset!r:.40} of {entry.name!r}: its {nbytes:,} bytes do not fit there")
        if (entry.offset + offset) % LINE or (".experts." in name and entry.offset % PAGE):
            raise self._refuse(name, f"at byte {entry.offset + offset:,} of the file, which is not aligned")
        return PackedPart(name, part, shape, format, entry, entry.offset + offset, nbytes)

    def _plain_part(self, name: str, part: str, shape: tuple[int, ...], *, is_planned: bool) -> PackedPart:
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.file}: {name} is missing; the file is damaged, get it again")
        allowed = ("F32",) if is_planned else tuple(FILE_DTYPES)
        if entry.dtype not in allowed or entry.shape != shape:
            raise self._refuse(
                name, f"{entry.dtype} {list(entry.shape)}, expected {' or '.join(allowed)} {list(shape)}"
            )
        if not is_planned and not isinstance(self.plain.get(name), str):
            raise self._refuse(name, f"plain {entry.dtype}, and the recipe says neither that nor why")
        if entry.offset % LINE:
            raise self._refuse(name, f"at byte {entry.offset:,} of the file, which is not aligned")
        return PackedPart(name, part, shape, None, entry, entry.offset, entry.nbytes)

    def _check_places(self, parts: tuple[PackedPart, ...]) -> None:
        """No byte belongs to two parts, and no tensor of the file to none."""
        end, last = 0, ""
        for p in sorted(parts, key=lambda p: p.offset):
            if p.offset < end:
                raise self._refuse(p.name, f"in bytes that belong to {last} too")
            end, last = p.offset + p.nbytes, p.name
        used = {p.entry.name for p in parts}
        unused = [e for e in self.entries.values() if e.name not in used]
        if odd := [e.name for e in unused if e.dtype != "U8" or not _PAD.fullmatch(e.name)]:
            raise CheckpointError(f"{self.file}: tensors that the model has not: {list_names(odd)}")

    def _refuse(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {name} is {what}; the file is damaged, get it again")
