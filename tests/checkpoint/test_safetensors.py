import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from coterie.checkpoint.safetensors import TensorSpec, read_entries, write_file
from coterie.errors import CheckpointError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header, data: bytes = bytes(32)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def changed(name: str, **fields) -> dict:
    return {**GOOD, name: {**GOOD[name], **fields}}


def test_entries_say_where_each_tensor_lies(tmp_path):
    path = write(tmp_path / "x", GOOD)
    a, b = read_entries(path)
    assert (a.name, a.dtype, a.shape, a.nbytes, b.offset - a.offset) == ("a", "F32", (2, 3), 24, 24)
    assert b.offset + b.nbytes == path.stat().st_size


def test_files_of_the_reference_writer_are_read(tmp_path):
    tensors = {"x": torch.randn(3, 5), "y": torch.ones(7, dtype=torch.bfloat16), "z": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = {e.name: e for e in read_entries(tmp_path / "m.safetensors")}
    assert {n: e.shape for n, e in found.items()} == {"x": (3, 5), "y": (7,), "z": (0, 4)}
    raw = (tmp_path / "m.safetensors").read_bytes()[found["x"].offset :][: found["x"].nbytes]
    assert np.array_equal(np.frombuffer(raw, np.float32).reshape(3, 5), tensors["x"].numpy())


BAD = {
    "overlap": (changed("b", data_offsets=[20, 28]), "'a' and 'b' overlap"),
    "hole": (changed("a", shape=[1, 3], data_offsets=[0, 12]), "hole of 12 bytes"),
    "bytes after the data": ({"a": GOOD["a"]}, "describes"),
    "range beyond the file": (changed("b", shape=[8], data_offsets=[24, 40]), "truncated: 'b' should end"),
    "huge range": (changed("b", data_offsets=[24, 1 << 61]), "truncated: 'b' should end"),
    "backward range": (changed("b", data_offsets=[32, 24]), "range"),
    "shape that does not fit": (changed("a", shape=[2, 4]), "do not hold"),
    "negative shape": (changed("a", shape=[-2, -3]), "from 0 up"),
    "shape that overflows 64 bits": (changed("a", shape=[1 << 40, 1 << 40]), "do not hold"),
    "too many dimensions": (changed("a", shape=[1] * 9), "at most 8"),
    "shape of floats": (changed("a", shape=[2.0, 3]), "whole numbers"),
    "shape of booleans": (changed("a", shape=[True, 6]), "whole numbers"),
    "unknown type": (changed("a", dtype="F33"), "'F33'"),
    "type that is no string": (changed("a", dtype=["F32"]), "unknown dtype"),
    "field missing": ({**GOOD, "a": {"dtype": "F32", "shape": [2, 3]}}, "exactly dtype"),
    "entry that is no table": ({**GOOD, "a": 3}, "exactly dtype"),
    "one offset": (changed("a", data_offsets=[0]), "range"),
    "a list": (b"[1]", "does not start"),
    "not JSON": (b'{"a": ', "not valid JSON"),
    "a key twice": (b'{"a":{},"a":{}}', "twice"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "not UTF-8": (b'{"\xff": 1}', "UTF-8"),
    "nested without end": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_one_sentence_that_names_the_file(tmp_path, case):
    header, said = BAD[case]
    path = write(tmp_path / "bad.safetensors", header)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors") as caught:
        read_entries(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 100])
def test_a_header_longer_than_the_file_is_refused_before_reading_it(tmp_path, length):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=f"{length:,} bytes"):
        read_entries(path)


def test_a_header_above_100_megabytes_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "bad.safetensors"
    with open(path, "wb") as f:
        f.write((200_000_000).to_bytes(8, "little") + b"{")
        f.truncate(200_000_100)  # sparse: takes no disk
    with pytest.raises(CheckpointError, match="expected at most 100,000,000"):
        read_entries(path)


@pytest.mark.parametrize("size", [0, 7, 8, 20, -1])
def test_every_truncation_is_found(tmp_path, size):
    path = write(tmp_path / "m.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        read_entries(path)


def test_a_folder_a_pipe_and_nothing_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "pipe", "absent"):
        with pytest.raises(CheckpointError):
            read_entries(tmp_path / name)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_damaged_file_is_refused_or_means_what_the_reference_reader_reads(tmp_path_factory, data):
    raw = bytearray(write(tmp_path_factory.mktemp("fuzz") / "x", GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    path.write_bytes(raw)
    try:
        entries = read_entries(path)
    except CheckpointError:
        return
    try:
        with safe_open(path, "pt") as theirs:
            assert {e.name for e in entries} == set(theirs.keys())
            assert all(tuple(theirs.get_slice(e.name).get_shape()) == e.shape for e in entries)
    except SafetensorError as e:
        pytest.fail(f"the reference reader refuses what we took: {e}")


def test_what_is_written_is_what_the_reference_reader_reads(tmp_path):
    x, y = np.arange(12, dtype=np.float32), np.arange(5, dtype=np.int64)
    specs = [TensorSpec("x", "F32", (3, 4)), TensorSpec("ü", "I64", (5,)), TensorSpec("none", "F16", (0,))]
    raw = x.tobytes() + y.tobytes()
    write_file(tmp_path / "m.safetensors", specs, [raw[:5], raw[5:50], raw[50:]], {"who": "me"})
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["x"], torch.from_numpy(x).view(3, 4))
    assert torch.equal(found["ü"], torch.from_numpy(y))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_stops_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "m.safetensors").write_text("old")

    def pieces():
        yield bytes(8)
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "m.safetensors", [TensorSpec("x", "F32", (4,))], pieces())
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert (tmp_path / "m.safetensors").read_text() == "old"


def test_too_few_bytes_for_the_header_are_our_own_fault(tmp_path):
    with pytest.raises(AssertionError, match="announced"):
        write_file(tmp_path / "m", [TensorSpec("x", "F32", (4,))], [bytes(8)])
    assert not list(tmp_path.iterdir())
