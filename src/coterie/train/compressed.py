"""Files of text as streams of bytes, decompressed on the way: plain, gzip, Zstandard.

A name that says one thing and a content that is another are refused. Surprising: `zstandard`'s own stream reader takes
a file that breaks off for one that ends, so frames are followed here, and a cut one is an error as it is with gzip.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from coterie.errors import DataError

__all__ = ["missing_package", "open_stream", "reading_errors"]

_CHUNK = 1 << 10  # compressed bytes at a time: even of zeros, 32,000 to a byte, that is 32 MB of content
_LONGEST_WINDOW = 1 << 31  # bytes a Zstandard frame may look back: what `zstd --long=31` makes (by itself 2^27)
_MAGIC = {
    b"\x1f\x8b": ("gzip data", ".gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", ".zst"),
    b"PAR1": ("a Parquet file", ".parquet"),
}
_DAMAGED = "the compressed data is damaged; fetch or compress it again"
_LFS = b"version https://git-lfs"


@contextmanager
def open_stream(path: Path, suffix: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The stream of `path`'s content, and the file below it, whose `tell()` says how far reading has come.

    `suffix` (".gz", ".zst" or "") is what the name promises; `DataError` where the first bytes say otherwise.
    """
    with path.open("rb") as file:
        _check_start(file.read(len(_LFS)), suffix, path)
        file.seek(0)
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield cast(BinaryIO, unzipped), file
        elif suffix == ".zst":
            with io.BufferedReader(_ZstandardStream(file, path), 1 << 17) as unpacked:
                yield unpacked, file
        else:
            yield file, file


@contextmanager
def reading_errors(path: Path, place: str = "") -> Iterator[None]:
    """What reading may raise, as one `DataError` that names the file and `place` (", line 7")."""
    try:
        yield
    except OSError as e:
        if isinstance(e, gzip.BadGzipFile):
            raise DataError(f"{path}{place} cannot be read: {_DAMAGED}") from None
        raise DataError(f"{path}{place} cannot be read: {(e.strerror or str(e)).lower()}") from None
    except Exception as e:
        if isinstance(e, EOFError):
            raise DataError(
                f"{path}{place} cannot be read: the compressed data breaks off before its end; fetch or compress it "
                "again"
            ) from None
        if isinstance(e, zlib.error) or type(e).__name__ == "ZstdError":
            raise DataError(f"{path}{place} cannot be read: {_DAMAGED}") from None
        raise


def missing_package(path: Path, package: str) -> DataError:
    """The sentence for a package that only some formats need."""
    return DataError(f"{path} needs the Python package {package}, which is not installed: pip install 'coterie[train]'")


def _check_start(start: bytes, suffix: str, path: Path) -> None:
    if start == _LFS:
        raise DataError(f"{path} is a Git LFS pointer, not the text itself; run `git lfs pull` in its folder")
    for magic, (what, wanted) in _MAGIC.items():
        if start.startswith(magic) and wanted != suffix:
            raise DataError(f"{path} cannot be read: it is {what} and its name does not say so; rename it to *{wanted}")
    promised = next((m for m, (_, wanted) in _MAGIC.items() if wanted == suffix), b"")
    if start and not start.startswith(promised):
        what = _MAGIC[promised][0]
        raise DataError(f"{path} cannot be read: its name promises {what} and it is none; rename it or fetch it again")


class _ZstandardStream(io.RawIOBase):
    """The content of all frames of a .zst file, one after the other; `EOFError` where the last one is cut."""

    def __init__(self, file: BinaryIO, path: Path):
        try:
            import zstandard
        except ModuleNotFoundError:
            raise missing_package(path, "zstandard") from None
        self._file, self._decompressor = file, zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
        self._frame: Any = None
        self._compressed, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            compressed = self._compressed or self._file.read(_CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._content = memoryview(self._decompress(compressed))
        n = min(len(buffer), len(self._content))
        buffer[:n], self._content = self._content[:n], self._content[n:]
        return n

    def _decompress(self, compressed: bytes) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        content: bytes = self._frame.decompress(compressed)
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return content
