import numpy as np
import pytest

from coterie.checkpoint.names import Place
from coterie.checkpoint.pieces import Files, cut, half_split, interleave
from coterie.checkpoint.safetensors import Entry
from coterie.errors import CheckpointError


def test_the_rows_worked_out_in_the_docstring():
    place = Place("q", 0, (4, 1), n_heads=1)
    assert half_split(np.arange(4, dtype=np.uint8), place, 1).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("n_heads", [1, 3])
def test_interleaving_is_the_inverse_of_half_splitting(n_heads):
    place = Place("q", 0, (8 * n_heads, 5), n_heads)
    raw = np.random.default_rng(0).integers(0, 256, 8 * n_heads * 5 * 2, dtype=np.uint8)
    assert not np.array_equal(half_split(raw, place, 2), raw)
    assert np.array_equal(interleave(half_split(raw, place, 2), place, 2), raw)


@pytest.mark.parametrize(("n_heads", "size"), [(0, 64), (3, 160), (3, 80)])
def test_pieces_cover_a_tensor_and_keep_heads_whole(tmp_path, n_heads, size):
    entry = Entry("q", "F32", (24, 5), tmp_path, 100, 480)
    found = list(cut(entry, Place("q", 7, (24, 5), n_heads), size))
    assert sum(p.nbytes for p in found) == 480
    assert [p.start for p in found[1:]] == list(np.cumsum([p.nbytes for p in found])[:-1])
    assert all(p.nbytes % (160 if n_heads else 4) == 0 for p in found)
    assert found[1].first == found[0].n_elements == found[0].nbytes // 4


def test_reading_says_when_a_file_is_gone_or_short(tmp_path):
    (tmp_path / "w").write_bytes(bytes(range(100)))
    piece = next(cut(Entry("x", "U8", (50,), tmp_path / "w", 40, 50), Place("x", 0, (50,))))
    out = np.empty(50, np.uint8)
    with Files([tmp_path / "w"]) as files:
        files.read(piece, out)
        files.forget(piece)
        assert out.tolist() == list(range(40, 90))
        (tmp_path / "w").write_bytes(bytes(60))
        with pytest.raises(CheckpointError, match="became shorter"):
            files.read(piece, out)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Files([tmp_path / "absent"])
