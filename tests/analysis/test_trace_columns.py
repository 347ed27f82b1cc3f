"""Shapes: T tokens, L layers, K slots."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.analysis.trace_columns import pack_bitmap, pack_ids, pack_weights, unpack_bitmap, unpack_ids


def test_the_first_of_two_ids_is_the_low_half_of_a_byte() -> None:
    ids_TLK = np.array([[[3, 7]], [[1, 0]]], dtype=np.int16)
    assert pack_ids(ids_TLK, 4).tolist() == [[0x73, 0x01]]


def test_a_layer_begins_at_a_whole_byte() -> None:
    ids_TLK = np.array([[[15], [1]], [[2], [3]], [[4], [5]]], dtype=np.int16)  # 3 tokens, 2 layers, K = 1
    assert pack_ids(ids_TLK, 4).tolist() == [[0x2F, 0x04], [0x31, 0x05]]


@given(st.sampled_from([(4, 16), (8, 256), (16, 300)]), st.integers(1, 9), st.integers(1, 3), st.data())
def test_any_part_of_the_ids_comes_back(kind: tuple[int, int], T: int, K: int, data: st.DataObject) -> None:
    bits, E = kind
    ids_TLK = np.random.default_rng(T * K).integers(-1, E, (T, 2, K)).astype(np.int16)
    start = data.draw(st.integers(0, T * K))
    stop = data.draw(st.integers(start, T * K))
    wanted = ids_TLK.transpose(1, 0, 2).reshape(2, -1)[:, start:stop]
    assert (unpack_ids(pack_ids(ids_TLK, bits), bits, start, stop) == wanted.clip(0)).all()
    assert (unpack_bitmap(pack_bitmap(ids_TLK < 0), start, stop) == (wanted < 0)).all()


@pytest.mark.parametrize(("largest", "scale"), [(0.75, 1.0), (1.0, 1.0), (2.5, 2.5)])
def test_weights_are_within_half_a_step(largest: float, scale: float) -> None:
    weights_TLK = np.linspace(0, largest, 12, dtype=np.float32).reshape(3, 2, 2)
    packed, found = pack_weights(weights_TLK)
    assert found == scale and packed.shape == (2, 6)
    back = packed.reshape(2, 3, 2).transpose(1, 0, 2) * scale / 255
    assert abs(back - weights_TLK).max() <= scale / 510 + 1e-6


def test_three_quarters_is_the_byte_191() -> None:
    assert pack_weights(np.full((1, 1, 1), 0.75, dtype=np.float32))[0].item() == 191
