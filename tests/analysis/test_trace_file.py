"""Files from strangers: cut off, changed, or never a trace; each is one sentence and nothing is allocated for it."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coterie.analysis.trace import Trace, make_trace, open_trace
from coterie.analysis.trace_form import PREFIX, TRAILER, TRAILER_MAGIC
from coterie.errors import CoterieError, DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """20 tokens of 2 documents, small enough to try every byte of."""
    ids = np.arange(20) % 4
    return make_trace(
        tmp_path / "a.trace", experts_TLK=np.stack([ids, 3 - ids], -1)[:, None].repeat(2, 1), token_ids=ids,
        weights_TLK=np.full((20, 2, 2), 0.5), documents=np.arange(20) // 10, n_experts=4,
        pieces=["a", "b", "c", "d"],
    )  # fmt: skip


def read_all(path: Path) -> Trace:
    trace = open_trace(path)
    assert (trace.experts() >= 0).all() and trace.experts().max() < trace.n_experts
    assert (trace.token_ids < trace.vocab_size).all() and (trace.domain_of_T < len(trace.domains)).all()
    for column in (trace.weights(), trace.documents, trace.positions):
        assert np.isfinite(column).all()
    return trace


def test_a_file_cut_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut"
    for n in range(len(whole)):
        cut.write_bytes(whole[:n])
        with pytest.raises(DataError, match=r"cut off|no routing trace|damaged"):
            open_trace(cut)


def test_a_changed_byte_is_found_wherever_it_is(path: Path, tmp_path: Path) -> None:
    """The one exception is padding, which nobody reads."""
    whole, changed = path.read_bytes(), tmp_path / "changed"
    n_unseen = 0
    for place in range(len(whole)):
        changed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            read_all(changed)
            n_unseen += 1
        except CoterieError:
            pass
    assert n_unseen < 64  # the zeros behind the last column of the only block


def test_a_name_that_no_file_could_hold_is_refused(tmp_path: Path) -> None:
    path = make_trace(
        tmp_path / "a.trace", experts_TLK=np.zeros((1, 1, 1)), token_ids=np.zeros(1), weights_TLK=np.ones((1, 1, 1)),
        n_experts=1, model="abcdef",
    )  # fmt: skip
    magic, n, _ = PREFIX.unpack_from(whole := path.read_bytes())
    header = whole[PREFIX.size : PREFIX.size + n].replace(b"abcdef", rb"\ud800")
    path.write_bytes(PREFIX.pack(magic, n, zlib.crc32(header)) + header + whole[PREFIX.size + n :])
    with pytest.raises(DataError, match=r"a\.trace is damaged: a name in it has half of a surrogate pair"):
        open_trace(path)


@pytest.mark.parametrize("content", [b"", b"\x89CTRACE\n", b"hello world, this is no trace at all" * 4, bytes(500)])
def test_what_was_never_a_trace(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"no routing trace|cut off"):
        open_trace(file)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_trace(tmp_path / "none")
    with pytest.raises(DataError, match="is a folder"):
        open_trace(tmp_path)


def reseal(path: Path, change: Callable[[list[int]], None]) -> None:
    """Change the trailer's numbers, with a right checksum: what a hostile writer would do."""
    raw = path.read_bytes()
    *fields, _, magic = TRAILER.unpack(raw[-TRAILER.size :])
    change(fields)
    own = zlib.crc32(TRAILER.pack(*fields, 0, magic))
    path.write_bytes(raw[: -TRAILER.size] + TRAILER.pack(*fields, own, TRAILER_MAGIC))


@pytest.mark.parametrize("field", range(6))
@pytest.mark.parametrize("value", [0, 7, 1 << 40, (1 << 64) - 1])
def test_sizes_that_the_file_does_not_have(path: Path, field: int, value: int) -> None:
    reseal(path, lambda fields: fields.__setitem__(field, value))
    with pytest.raises(DataError, match=r"damaged|cut off"):
        open_trace(path)


def test_a_header_longer_than_the_file(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(PREFIX.pack(raw[:8], 1 << 31, 0) + raw[PREFIX.size :])
    with pytest.raises(DataError, match="cut off"):
        open_trace(path)


def test_a_tail_that_unpacks_to_more_than_it_says(path: Path) -> None:
    raw = path.read_bytes()
    tail_at, _, _, index_at, n_blocks, n_tokens, _, _, magic = TRAILER.unpack(raw[-TRAILER.size :])
    index, bomb = raw[index_at : -TRAILER.size], zlib.compress(b" " * 10_000_000)
    fields = (tail_at, len(bomb), 100, tail_at + len(bomb), n_blocks, n_tokens, zlib.crc32(index, zlib.crc32(bomb)))
    own = zlib.crc32(struct.pack("<QQQQQQII8s", *fields, 0, magic))
    path.write_bytes(raw[:tail_at] + bomb + index + TRAILER.pack(*fields, own, magic))
    with pytest.raises(DataError, match="another length"):
        open_trace(path)


def test_a_file_that_shrinks_while_it_is_open(path: Path) -> None:
    trace = open_trace(path)
    with path.open("r+b") as f:
        f.truncate(300)
    with pytest.raises(DataError, match=r"cut off|damaged"):
        trace.experts()
