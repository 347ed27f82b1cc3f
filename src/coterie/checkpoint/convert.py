"""One folder format into another without building a model: tensor by tensor, a few megabytes in memory.

Where the type stays, every byte stays: converting there and back gives the same tensors. What is written is one
tensor per expert, so each new tensor is a stretch of exactly one old one, whichever naming the source has.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.atomic import new_folder, require_disk
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import copy_files, write_json, write_shards, write_sidecars
from coterie.checkpoint.mistral import config_to_params
from coterie.checkpoint.names import Place, places
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, convert_into, file_type, require_finite
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.pieces import Files, cut, half_split, interleave
from coterie.checkpoint.safetensors import ITEM_BITS, Entry, TensorSpec, write_file
from coterie.checkpoint.tied import require_tied_equal
from coterie.errors import RequestError, nearest
from coterie.tokenizer import tokenizer_files

__all__ = ["FORMATS", "convert"]

FORMATS = ("huggingface", "mistral")
Progress = Callable[[int, int], None]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def convert(src: Path, dst: Path, *, to: str, type: str | None = None, progress: Progress | None = None) -> None:
    """Write the model in folder `src` as the new folder `dst` of format `to`, its numbers as `type` (None: as is).

    Tokenizer files and generation_config.json are copied. NaN, Inf and numbers too large for float16 are errors that
    name the tensor. `dst` must not exist; it appears whole or not at all. `progress(done, total)` counts bytes read.
    """
    if to not in FORMATS:
        raise RequestError(f"the format {to!r} is unknown, expected one of {', '.join(FORMATS)}{nearest(to, FORMATS)}")
    src, dst = Path(src), Path(dst)
    code = None if type is None else file_type(type)[1]
    if code is not None:
        import_module("torch")  # not later, beside half a folder: Ctrl-C during an import may end the process at once
    checkpoint = open_checkpoint(src)
    work = _plan(checkpoint, to, code)
    config = checkpoint.config if code is None else replace(checkpoint.config, torch_dtype=FILE_DTYPES[code])
    extras = _companions(src)
    with new_folder(dst) as partial, Files(checkpoint.files) as files:
        require_disk(dst, sum(w.spec.nbytes for w in work))
        require_tied_equal(checkpoint, files)
        report = _Report(progress, checkpoint.nbytes)
        contents = (w.contents(files, report) for w in work)
        if to == "huggingface":
            write_shards(partial, [w.spec for w in work], contents)
            write_sidecars(partial, config, config.torch_dtype, extras)
        else:
            pieces = (piece for content in contents for piece in content)
            write_file(partial / "consolidated.safetensors", [w.spec for w in work], pieces)
            write_json(partial / "params.json", config_to_params(config))
            copy_files(extras, partial)


class _Report:
    """Adds up bytes for the caller's progress."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._done, self._total = progress, 0, total

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Work:
    """One tensor to be written, and the stretch of an old file that holds it."""

    spec: TensorSpec
    source: Entry
    place: Place  # of the stretch; n_heads > 0: the old rows are interleaved
    new_heads: int  # > 0: the new rows are

    def contents(self, files: Files, report: _Report) -> Iterator[Bytes]:
        """The new tensor's bytes, piece by piece; the pieces are whole heads where rows move."""
        cut_place = replace(self.place, n_heads=self.place.n_heads or self.new_heads)
        for piece in cut(self.source, cut_place):
            raw = np.empty(piece.nbytes, np.uint8)
            files.read(piece, raw)
            require_finite(raw, self.source.dtype, piece.label)
            yield self._converted(self._moved(raw), piece.label)
            report.add(piece.nbytes)

    def _moved(self, raw: Bytes) -> Bytes:
        if bool(self.place.n_heads) == bool(self.new_heads):
            return raw
        item_bytes = ITEM_BITS[self.source.dtype] // 8
        if self.place.n_heads:
            return half_split(raw, self.place, item_bytes)
        return interleave(raw, replace(self.place, n_heads=self.new_heads), item_bytes)

    def _converted(self, raw: Bytes, label: str) -> Bytes:
        if self.spec.dtype == self.source.dtype:
            return raw
        import torch

        source = as_torch(raw, self.source.dtype)
        target = torch.empty(source.shape, dtype=getattr(torch, FILE_DTYPES[self.spec.dtype]))
        convert_into(target, source, label)
        new: Bytes = target.view(torch.uint8).numpy()
        return new


def _plan(checkpoint: Checkpoint, to: str, code: str | None) -> list[_Work]:
    """What to write, in order, and from where."""
    held: dict[str, list[tuple[Place, Entry]]] = {}
    for entry, place in zip(checkpoint.entries, checkpoint.places, strict=True):
        held.setdefault(place.name, []).append((place, entry))
    for stretches in held.values():
        stretches.sort(key=lambda stretch: stretch[0].first)
    work = []
    for name, new in places(checkpoint.config, "mistral" if to == "mistral" else "huggingface"):
        stretches = held[new.name]
        old, entry = stretches[bisect_right(stretches, new.first, key=lambda stretch: stretch[0].first) - 1]
        item_bytes = ITEM_BITS[entry.dtype] // 8
        offset = entry.offset + (new.first - old.first) * item_bytes
        source = replace(entry, shape=new.shape, offset=offset, nbytes=new.n_elements * item_bytes)
        spec = TensorSpec(name, code or entry.dtype, new.shape)
        work.append(_Work(spec, source, replace(new, n_heads=old.n_heads), new.n_heads))
    return work


def _companions(src: Path) -> list[Path]:
    """The files beside the weights that go along: the tokenizer's, and how the model's makers generate with it."""
    generation = src / "generation_config.json"
    return [*tokenizer_files(src), *([generation] if generation.is_file() else [])]
