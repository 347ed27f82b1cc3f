"""Is a model what its manifest says, and are its weights sound? Weights travel by torrent: know what you hold.

Each file is read once: the digest is taken and NaN and Inf are looked for in the same bytes. A file that is not in the
manifest is named, and fails the check where a model would be read from it.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.gguf import is_first_part, parts_of, read_header
from coterie.checkpoint.inside import inside
from coterie.checkpoint.manifest import MANIFEST, files_of, read_manifest, save_manifest
from coterie.checkpoint.names import Place
from coterie.checkpoint.numbers import FILE_DTYPES, require_finite
from coterie.checkpoint.pieces import PIECE_BYTES, cut
from coterie.checkpoint.safetensors import Entry, read_entries
from coterie.errors import CheckpointError, CoterieError
from coterie.quant.ggml_blocks import GGML_TYPES, scale_bytes

__all__ = ["Report", "verify", "write_manifest"]

Progress = Callable[[int, int], None]
_READ_BY_MODELS = (".safetensors", ".json", ".model", ".gguf", ".jinja")
_THREADS = 4


@dataclass
class Report:
    """What a check found; `problems` is empty where all is well."""

    n_files: int = 0
    n_bytes: int = 0
    n_tensors: int = 0
    changed: list[str] = field(default_factory=list)  # files whose digest differs
    missing: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)  # files that the manifest does not name
    damaged: list[str] = field(default_factory=list)  # sentences on weights: headers, NaN, Inf, what does not fit

    @property
    def problems(self) -> list[str]:
        """One short sentence for each kind of fault."""
        exposed = [name for name in self.unlisted if _is_read(name)]
        kinds = (
            ("differ from the manifest", self.changed),
            ("are missing", self.missing),
            ("are read by models and not in the manifest", exposed),
        )
        return [f"{len(names)} files {what}: {_list(names)}" for what, names in kinds if names] + self.damaged

    def require_ok(self, folder: Path) -> None:
        """`CheckpointError` with every kind of fault, unless there is none."""
        if self.problems:
            raise CheckpointError(f"{folder} is not sound: {'; '.join(self.problems)}")


def verify(path: Path, *, progress: Progress | None = None) -> Report:
    """Check a folder, or a .gguf file (all parts of it), against its manifest and its weights for damage.

    Raises `CheckpointError` where there is no manifest, and says even so what is wrong with the weights. That of a file
    is the one in its folder.
    """
    parts = [part.name for part in parts_of(path)] if path.suffix == ".gguf" and path.is_file() else None
    folder = _folder(path if parts is None else path.parent)
    present = files_of(folder) if parts is None else parts
    if not (folder / MANIFEST).is_file():
        raise _no_manifest(path, folder, present, progress)
    digests = read_manifest(folder)
    if parts is not None:
        digests = {name: digest for name, digest in digests.items() if name in parts}
    found, report = _read_all(folder, [name for name in digests if (folder / name).is_file()], progress)
    report.missing = sorted(digests.keys() - found.keys())
    report.changed = sorted(name for name, digest in found.items() if digest != digests[name])
    report.unlisted = [name for name in present if name not in digests]
    return report


def _no_manifest(path: Path, folder: Path, names: list[str], progress: Progress | None) -> CheckpointError:
    """What to say where there is no manifest; the weights are looked at even so."""
    _, report = _read_all(folder, names, progress)
    found = "; ".join(report.damaged) or f"of its {report.n_tensors} tensors none is damaged"
    return CheckpointError(
        f"{path} has no {MANIFEST}, so nothing says what its files should be; get the one published with it, or make "
        f"one of what is there now: coterie verify {folder} --write ({found})"
    )


def write_manifest(folder: Path, *, progress: Progress | None = None) -> Report:
    """Write the manifest of what a folder holds now, after checking the weights; damaged ones get none."""
    folder = _folder(folder)
    names = files_of(folder)
    for name in names:
        inside(folder / MANIFEST, name)
    if not names:
        raise CheckpointError(f"{folder} holds no file to put in a manifest")
    found, report = _read_all(folder, names, progress)
    report.require_ok(folder)
    save_manifest(folder, found)
    return report


def _folder(path: Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; name the folder of a model")
    return path


def _read_all(folder: Path, names: list[str], progress: Progress | None) -> tuple[dict[str, str], Report]:
    """Digest of each file, and a report on the weights among them."""
    total = sum((folder / name).stat().st_size for name in names)
    report, lock, done = Report(n_files=len(names), n_bytes=total), threading.Lock(), 0
    stop = threading.Event()

    def count(n: int) -> None:
        nonlocal done
        if stop.is_set():
            raise InterruptedError
        with lock:
            done += n
            if progress is not None:
                progress(done, total)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        futures = [pool.submit(_read_file, folder / name, count) for name in names]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for _, n_tensors, damage in results:
        report.n_tensors += n_tensors
        report.damaged += damage
    if not report.damaged:
        report.damaged += _misfits(folder, names)
    return {name: digest for name, (digest, _, _) in zip(names, results, strict=True)}, report


def _read_file(path: Path, count: Callable[[int], None]) -> tuple[str, int, list[str]]:
    """Digest, number of tensors, and what is wrong with them."""
    digest, damage, segments, n_tensors = hashlib.sha256(), [], _plain(path), 0
    if path.suffix in (".safetensors", ".gguf"):
        try:
            n_tensors, segments = _by_tensor(path)
        except CheckpointError as e:
            damage.append(str(e))
    try:
        with open(path, "rb") as f:
            for nbytes, code, label in segments:
                raw = np.empty(nbytes, np.uint8)
                if f.readinto(raw.data) != nbytes:
                    raise CheckpointError(f"{path} became shorter while it was read")
                digest.update(raw.data)
                if code in GGML_TYPES:
                    _note_damage(damage, raw, code, label)
                count(nbytes)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    return digest.hexdigest(), n_tensors, damage


def _note_damage(damage: list[str], raw: "np.ndarray[Any, np.dtype[np.uint8]]", code: str, label: str) -> None:
    try:
        if code in FILE_DTYPES:
            require_finite(raw, code, label)
        else:
            require_finite(scale_bytes(code, raw), "F16", f"a scale of {label}")
    except CheckpointError as e:
        if not any(label in sentence for sentence in damage):
            damage.append(str(e))


Segments = Iterator[tuple[int, str, str]]  # bytes, dtype code ("" where they are not numbers), name for messages


def _plain(path: Path) -> Segments:
    return _bytes(path.stat().st_size)


def _bytes(size: int) -> Segments:
    """Bytes that are not numbers."""
    return ((min(PIECE_BYTES, size - start), "", "") for start in range(0, size, PIECE_BYTES))


def _by_tensor(path: Path) -> tuple[int, Segments]:
    """A weight file cut so that no number is: its header, then the pieces of each tensor, and what is in between."""
    entries = _entries(path)

    def segments() -> Segments:
        at = 0
        for entry in entries:
            yield from _bytes(entry.offset - at)
            if entry.dtype in GGML_TYPES:
                for piece in cut(entry, Place(entry.name, 0, entry.shape)):
                    yield piece.nbytes, entry.dtype, piece.label
            else:  # of no type that weights have; some are smaller than a byte
                yield from _bytes(entry.nbytes)
            at = entry.offset + entry.nbytes
        yield from _bytes(path.stat().st_size - at)

    return len(entries), segments()


def _entries(path: Path) -> list[Entry]:
    if path.suffix == ".safetensors":
        return read_entries(path)
    tensors = sorted(read_header(path).tensors, key=lambda t: t.offset)
    return [Entry(t.name, t.type.name, t.shape, path, t.offset, t.nbytes) for t in tensors]


def _misfits(folder: Path, names: list[str]) -> list[str]:
    """What is wrong with the folder as a model, where it is one, and with its .gguf files."""
    models = [folder] if any(name in names for name in ("config.json", "params.json")) else []
    models += [folder / name for name in names if name.endswith(".gguf") and is_first_part(folder / name)]
    found = []
    for model in models:
        try:
            open_checkpoint(model)
        except CoterieError as e:
            found.append(str(e))
    return found


def _is_read(name: str) -> bool:
    return name.endswith(_READ_BY_MODELS) or name.rpartition("/")[2].startswith("tokenizer")


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
