import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.train.texts import files_below, read_files, read_mixture, read_rows, read_texts


def zstandard(data: bytes) -> bytes:
    package = pytest.importorskip("zstandard")
    packed: bytes = package.ZstdCompressor().compress(data)
    return packed


def write_parquet(path: Path, columns: dict[str, list[object]], row_group: int = 100) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group)


LINES = b'{"text": "ab", "id": 1}\n\n{"text": "\xc3\xa9\\n"}\n'


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard])
def test_json_lines_plain_and_compressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ending = {"bytes": "", "compress": ".gz", "zstandard": ".zst"}[pack.__name__]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(LINES))
    assert list(read_texts(path)) == ["ab", "é\n"]
    path.write_bytes(pack(LINES) + pack(b'{"text": ""}'))  # several gzip members or Zstandard frames are one stream
    assert list(read_texts(path)) == (["ab", "é\n", ""])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard])
def test_plain_text_is_one_document(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / ("a.txt" + {"bytes": "", "compress": ".gz", "zstandard": ".zst"}[pack.__name__])
    path.write_bytes(pack("\ufefféa\r\nb\n".encode()))
    assert list(read_texts(path)) == ["éa\nb\n"]


def test_long_plain_text_is_cut_at_line_ends_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.train.texts._LONGEST_TEXT", 10)
    monkeypatch.setattr("coterie.train.texts._BLOCK", 7)
    text = "é234\n67\n9\nabcdefghijklmnopqrs\nend"
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_texts(tmp_path / "a.txt"))
    assert pieces == ["é234\n67\n9\n", "abcdefghij", "klmnopqrs\n", "end"] and "".join(pieces) == text


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_reads_the_column_text(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array([f"{i} é" for i in range(700)])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    write_parquet(tmp_path / "a.parquet", {"id": list(range(700)), "text": texts})
    seen: list[int] = []
    assert list(read_texts(tmp_path / "a.parquet", seen.append)) == [f"{i} é" for i in range(700)]
    assert seen == sorted(seen) and seen[-1] == (tmp_path / "a.parquet").stat().st_size


def test_a_folder_is_its_readable_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.jsonl.gz", "a/b.txt", "README.md", ".hidden.txt", ".git/c.txt", "A.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = b'{"text": "a/z.jsonl.gz"}\n' if "jsonl" in name else name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    names = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path)]
    assert names == ["A.TXT", "a/b.txt", "a/z.jsonl.gz", "b.txt"]
    seen: list[int] = []
    assert list(read_files(files_below(tmp_path), seen.append)) == names
    assert seen == sorted(seen) and seen[-1] == sum(path.stat().st_size for path in files_below(tmp_path))


def test_a_folder_follows_links_and_reads_no_folder_twice(tmp_path: Path) -> None:
    for name in ("elsewhere/b.txt", "there/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "there" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "there" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "there" / "loop").symlink_to(tmp_path / "there")
    names = [str(path.relative_to(tmp_path / "there")) for path in files_below(tmp_path / "there")]
    assert names == ["a.txt", "again/b.txt"]


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
GOOD = b'{"text": "abc def"}\n'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": 1}\n',
            "line 2: expected a JSON object with a string \"text\", found only 'txt'",
        ),
        ("a.jsonl", b'{"text": null}\n', "line 1: expected"),
        ("a.jsonl", b"[1]\n", "line 1: expected"),
        ("a.jsonl", b'"text"\n', "line 1: expected"),
        ("a.jsonl", b"\n\n{", "line 3: expected"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: its text holds half a surrogate pair"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: expected"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', "line 2: cannot be read: byte 0xFF is not UTF-8; convert the file"),
        ("a.jsonl", GOOD.decode().encode("utf-16"), "line 1: cannot be read: byte 0xFF is not UTF-8"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), r"it is gzip data and its name does not say so; rename it to \*\.gz"),
        ("a.jsonl", zstandard, r"it is Zstandard data .* rename it to \*\.zst"),
        ("a.jsonl", b"PAR1xxxx", "it is a Parquet file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-9], "line 2, cannot be read: the compressed data breaks off"),
        ("a.jsonl.gz", gzip.compress(GOOD + bytes(range(256)) * 4, 0, mtime=0)[:30], "the compressed data breaks off"),
        (
            "a.jsonl.gz",
            gzip.compress(GOOD, mtime=0)[:-8] + b"12345678",
            "cannot be read: the compressed data is damaged",
        ),
        ("a.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff\xff\xff", "cannot be read: the compressed data is damaged"),
        ("a.jsonl.gz", b"plain", "its name promises gzip data and it is none"),
        ("a.jsonl.zst", b"plain", "its name promises Zstandard data and it is none"),
        ("a.txt", b"one\ntwo \xff", "line 2: cannot be read: byte 0xFF is not UTF-8"),
        ("a.txt", PNG, "line 1: cannot be read: byte 0x89"),
        ("a.txt", b"a\nb\nc\0\0", "line 3: cannot be read: it holds a zero byte, so this is no text file"),
        ("a.parquet", b"PAR1" + bytes(30), "cannot be read as Parquet: .*; fetch or make the file again"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.docx", b"PK", r"no format that text is read from: expected \.txt and \.jsonl files"),
    ],
)
def test_bad_files_name_the_place(
    tmp_path: Path, name: str, content: bytes | Callable[[bytes], bytes], sentence: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(GOOD))
    with pytest.raises(DataError, match=sentence) as e:
        [*files_below(tmp_path / name), *read_texts(tmp_path / name)]
    assert str(e.value).startswith(str(tmp_path / name)) and "\n" not in str(e.value)


@pytest.mark.parametrize("n_kept", [5, 100, 1000, -1])
def test_a_zstandard_file_that_breaks_off(tmp_path: Path, n_kept: int) -> None:
    lines = "".join(json.dumps({"text": os.urandom(50).hex()}) + "\n" for _ in range(100)).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard(lines)[:n_kept])
    with pytest.raises(DataError, match=r"line \d+, cannot be read: the compressed data breaks off"):
        list(read_texts(tmp_path / "a.jsonl.zst"))


def test_a_zstandard_file_that_looks_far_back(tmp_path: Path) -> None:
    """As `zstd --long=31` makes it: sound, and beyond what the library allows by itself."""
    zstd = pytest.importorskip("zstandard")
    parameters = zstd.ZstdCompressionParameters(window_log=28, write_content_size=False)
    packed = zstd.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packed.compress(GOOD) + packed.flush())
    assert list(read_texts(tmp_path / "a.jsonl.zst")) == ["abc def"]


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_damaged_byte_in_compressed_text(tmp_path: Path, end: str) -> None:
    pack = gzip.compress if end == ".gz" else zstandard
    data = bytearray(pack("".join(json.dumps({"text": f"{i} {i * i}"}) + "\n" for i in range(2000)).encode()))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (tmp_path / f"a.jsonl{end}").write_bytes(data)
    with pytest.raises(DataError, match=r"line [0-9]+"):
        list(read_texts(tmp_path / f"a.jsonl{end}"))


def test_rows_come_with_their_labels(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "lang": ["fr", "de"], "size": [1, 2]}
    write_parquet(tmp_path / "a.parquet", columns)
    assert list(read_rows(tmp_path / "a.parquet", ("domain", "lang"))) == [
        {"text": "a", "lang": "fr"}, {"text": "b", "lang": "de"}
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text('{"text": "a", "lang": "fr", "n": 1}\n{"text": "b"}\n')
    assert list(read_rows(tmp_path / "a.jsonl", ())) == [{"text": "a", "lang": "fr", "n": 1}, {"text": "b"}]
    (tmp_path / "a.txt").write_text("a")
    assert list(read_rows(tmp_path / "a.txt", ("lang",))) == [{"text": "a"}]


def test_parquet_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for columns, sentence in (
        ({"content": ["a"], "id": [1]}, 'has no column "text", only content, id'),
        ({"text": [1, 2]}, 'the column "text" holds int64, expected strings'),
        ({"text": ["a", "b", None]}, 'row 3: its "text" is null'),
    ):
        write_parquet(path, columns)
        with pytest.raises(DataError, match=sentence):
            list(read_texts(path))
    write_parquet(path, {"text": [os.urandom(40).hex() for _ in range(1000)]})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:1000] + bytes(2000) + whole[3000:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            list(read_texts(path))


@pytest.mark.parametrize(
    ("name", "package", "content"),
    [("a.parquet", "pyarrow", b"PAR1"), ("a.jsonl.zst", "zstandard", b"\x28\xb5\x2f\xfd")],
)
def test_a_package_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, content: bytes
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{package}, which is not installed: pip install 'coterie\[train\]'"):
        list(read_texts(tmp_path / name))


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.train.texts._LONGEST_LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b"1" * (1 << 21))
    with pytest.raises(DataError, match="line 1: has no end within 1 MB; expected JSON lines"):
        list(read_texts(tmp_path / "a.jsonl"))


def test_what_is_no_file_and_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file or a folder"):
        files_below(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"has no text in or below it: expected \.txt .*, found nothing"):
        files_below(tmp_path)
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(DataError, match=r"found only b\.csv and the like"):
        files_below(tmp_path)


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="b cannot be read: permission denied"):
        files_below(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    if os.access(tmp_path / "a.txt", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="cannot be read: permission denied"):
        list(read_texts(tmp_path / "a.txt"))


def test_a_mixture_repeats_an_entry_as_its_weight_asks(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [tmp_path / name for name in ("a.txt", "b/1.txt", "c.txt")]
    for path, text in zip(paths, ("aaaa", "bb", "cccc"), strict=True):
        path.write_text(text)
    paths[1] = tmp_path / "b"
    assert list(read_mixture(paths, [])) == ["aaaa", "bb", "cccc"]
    assert list(read_mixture(paths, [0.1, 0.1, 0.0])) == ["aaaa", "bb", "bb"]
    assert len(list(read_mixture(paths, [1.0, 99.0, 1.0]))) == 1 + 16 + 1


@pytest.mark.parametrize("weights", [[], [1.0, 3.0]])
def test_a_mixture_that_is_too_much_is_thinned_evenly(tmp_path: Path, weights: list[float]) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps({"text": f"{path.name[0]}{i:03}"}) + "\n" for i in range(1000)))
    texts = list(read_mixture(paths, weights, most_bytes=2000))
    n_a, n_b = (sum(text.startswith(letter) for text in texts) for letter in "ab")
    assert n_a + n_b == pytest.approx(500, abs=2)
    assert n_b / n_a == pytest.approx(3 if weights else 1, rel=0.02)
    assert max(int(text[1:]) for text in texts) > 990
