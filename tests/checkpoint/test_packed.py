"""Packed folders: what is written is what is read, the file is what docs/packed.md says, hostile ones are refused."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors import safe_open

from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint, read_model_config
from coterie.checkpoint.load import load_model
from coterie.checkpoint.packed import PackedCheckpoint, is_packed, open_packed
from coterie.checkpoint.quantise import quantise_checkpoint
from coterie.checkpoint.verify import verify
from coterie.errors import CheckpointError, CoterieError
from coterie.quant.recipe import Recipe
from coterie.quant.tensor import PackedTensor, alternate_halves


@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
def test_the_file_holds_what_is_quantised_in_memory(packable: Path, kind: str, tmp_path: Path) -> None:
    convert(packable, tmp_path / "packed", to="packed", type=kind)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert isinstance(checkpoint, PackedCheckpoint) and checkpoint.config == open_checkpoint(packable).config
    there, here = checkpoint.tensors(), quantise_checkpoint(open_checkpoint(packable), Recipe.of(kind))
    assert list(there) == list(here)
    for name, part in here.items():
        other = there[name]
        if isinstance(part, PackedTensor):
            assert isinstance(other, PackedTensor)
            assert part.format == other.format and part.shape == other.shape, name
            assert torch.equal(part.data, other.data), name
        else:
            assert isinstance(other, torch.Tensor) and other.dtype == part.dtype and torch.equal(part, other), name


@pytest.mark.filterwarnings("ignore:.*matrices stay")
def test_both_ways_to_load_agree_with_the_plain_weights(packable: Path, tmp_path: Path) -> None:
    plain = load_model(packable, dtype="float32").tensors()
    convert(packable, tmp_path / "packed", to="packed", type="int8")
    for name, part in open_packed(tmp_path / "packed").tensors().items():
        stem, _, last = name.rpartition(".")
        if ".experts." in name:
            stem, _, e = stem.rpartition(".")
            expected = plain[f"{stem}.{last}"][int(e)]
            expected = alternate_halves(expected) if last == "gate_up" and isinstance(part, PackedTensor) else expected
        else:
            expected = plain[name]
        values = part.dequantise() if isinstance(part, PackedTensor) else part
        assert torch.allclose(values, expected, atol=0.01), name
    ids = torch.arange(20)
    from coterie.model.attention import WholeSequences

    models = [load_model(tmp_path / "packed"), load_model(packable, quantize="int8")]
    with torch.inference_mode():
        a, b = (m(ids, ids, WholeSequences(1, None)).hidden_TD for m in models)
    assert torch.equal(a, b)


def test_any_reader_lists_it_and_records_are_aligned(packed: Path) -> None:
    file = packed / "model.safetensors"
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8:start])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "coterie-packed" and metadata["version"] == "1"
    assert json.loads(metadata["config"])["hidden_size"] == 64
    parts = json.loads(metadata["recipe"])["parts"]
    assert start % 4096 == 0 and file.stat().st_size % 4096 == 0
    for name, field in header.items():
        at = start + field["data_offsets"][0]
        if ".experts." in name:
            assert field["dtype"] == "U8" and at % 4096 == 0, name
            gate_up, down = parts[f"{name}.gate_up"], parts[f"{name}.down"]
            assert gate_up["offset"] == 0 and down["offset"] % 64 == 0 and gate_up["tensor"] == down["tensor"] == name
            assert gate_up["shape"] == [192, 64] and down["shape"] == [64, 96]
        elif not name.startswith("_pad."):
            assert at % 64 == 0, name
    assert header["layers.1.moe.router"]["dtype"] == header["norm"]["dtype"] == "F32"
    with safe_open(file, "pt") as f:
        assert sorted(f.keys()) == sorted(header)


def test_the_folder_stands_alone(packed: Path, sparse: Path) -> None:
    names = {p.name for p in packed.iterdir()}
    expected = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.model", "README.md"}
    assert names == expected | {"SHA256SUMS"}
    verify(packed).require_ok(packed)
    assert read_model_config(packed) == open_packed(packed).config
    shutil.rmtree(sparse)
    assert "| experts | 4 bit, groups of 32, 8-bit scales and offsets |" in (packed / "README.md").read_text()
    load_model(packed)


def test_other_readers_are_warned(packed: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="quantization config"):
        transformers.AutoModelForCausalLM.from_pretrained(packed)


def test_packed_files_are_packed_again_with_a_word(packed: Path, tmp_path: Path) -> None:
    """What is packed anew are the weights that the file stands for, so it is as if they had been a plain model's."""
    said: list[str] = []
    convert(packed, tmp_path / "plain", to="huggingface", type="f32")
    convert(packed, tmp_path / "anew", to="packed", type="int3", notice=said.append)
    convert(tmp_path / "plain", tmp_path / "from-plain", to="packed", type="int3")
    assert "packed already" in said[0]
    anew, plain = (open_packed(tmp_path / name).tensors() for name in ("anew", "from-plain"))
    loaded = load_model(packed, quantize="int3")
    assert anew.keys() == plain.keys()
    for name, matrix in anew.items():
        if isinstance(matrix, PackedTensor):
            assert torch.equal(matrix.data, plain[name].data), name  # type: ignore[union-attr]
    part = loaded.layers[0].attention.o.parts[0]
    assert torch.equal(part.data, anew["layers.0.attention.o"].data)


def _rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header's metadata and recipe, keeping its length where that is possible."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    recipe = json.loads(header["__metadata__"]["recipe"])
    change(header, recipe)
    if isinstance(header.get("__metadata__"), dict) and "recipe" in header["__metadata__"]:
        header["__metadata__"]["recipe"] = json.dumps(recipe)
    new = json.dumps(header, separators=(",", ":")).encode()
    new += b" " * (-(len(new) + 8) % 4096)
    file.write_bytes(len(new).to_bytes(8, "little") + new + raw[start:])


E0 = "layers.0.moe.experts.0"
DOWN = f"{E0}.down"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h, r: h["__metadata__"].update(version="2"), "version '2'"),
        (lambda h, r: h["__metadata__"].pop("version"), "version None"),
        (lambda h, r: h["__metadata__"].pop("config"), "no 'config'"),
        (lambda h, r: h["__metadata__"].update(config="{"), "config"),
        (lambda h, r: r.pop("formats"), "expected type, method and formats"),
        (lambda h, r: r["formats"]["experts"].update(bits=7), "bits is 7"),
        (lambda h, r: r["formats"]["experts"].update(bits=8), "do not fit|two parts|belong"),
        (lambda h, r: r["formats"].update(router={}), "formats of"),
        (lambda h, r: r.pop("parts"), "no table 'parts'"),
        (lambda h, r: r["parts"].pop(DOWN), "missing"),
        (lambda h, r: r["parts"].update({DOWN: 3}), "expected tensor, offset and shape"),
        (lambda h, r: r["parts"][DOWN].update(offset=-64), "do not fit"),
        (lambda h, r: r["parts"][DOWN].update(offset=1 << 70), "do not fit"),
        (lambda h, r: r["parts"][DOWN].update(offset=True), "do not fit"),
        (lambda h, r: r["parts"][DOWN].update(offset=0), "belong to"),
        (lambda h, r: r["parts"][DOWN].update(offset=r["parts"][DOWN]["offset"] - 32), "not aligned"),
        (lambda h, r: r["parts"][DOWN].update(shape=[64, 64]), "expected \\[64, 96\\]"),
        (lambda h, r: r["parts"][DOWN].update(tensor="norm"), "no U8 tensor"),
        (lambda h, r: r["parts"][DOWN].update(tensor=None), "no U8 tensor"),
        (lambda h, r: r["parts"].update({"layers.9.x": r["parts"][DOWN]}), "the model has not: layers.9.x"),
        (lambda h, r: r["parts"].update(norm={"tensor": E0, "offset": 0, "shape": [64]}), "keeps norms as float32"),
        (lambda h, r: h.update({"more": h.pop(next(n for n in h if n.startswith("_pad")))}), "has not: more"),
        (lambda h, r: h.update({"nom": h.pop("norm")}), "norm is missing"),
    ],
)  # fmt: skip
def test_every_number_is_checked(packed: Path, change: Callable[[Any, Any], None], match: str) -> None:
    _rewrite(packed, change)
    assert is_packed(packed)
    with pytest.raises(CoterieError, match=match):
        open_checkpoint(packed)


def test_random_damage_to_the_header_is_an_error_of_ours_or_none(packed: Path, is_full: bool) -> None:
    """Bytes of the header changed, one to three at a time: refused in a sentence, or read and never beyond the file."""
    file, random = packed / "model.safetensors", Random(0)
    raw = file.read_bytes()
    start, data = 8 + int.from_bytes(raw[:8], "little"), raw
    for _ in range(3000 if is_full else 200):
        damaged = bytearray(data[:start])
        for _ in range(random.randint(1, 3)):
            damaged[random.randrange(8, start)] = random.choice(b'0123456789{}[],:"-.eax \xff')
        file.write_bytes(damaged + data[start:])
        try:
            checkpoint = open_checkpoint(packed)
        except CoterieError:
            continue
        if isinstance(checkpoint, PackedCheckpoint):
            checkpoint.tensors()


def test_a_configuration_that_asks_for_millions_is_refused_at_once(packed: Path) -> None:
    def change(header: dict[str, Any], recipe: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["config"])
        config |= {"num_hidden_layers": 1000, "num_local_experts": 4000}
        header["__metadata__"]["config"] = json.dumps(config)

    _rewrite(packed, change)
    with pytest.raises(CheckpointError, match="asks for"):
        open_checkpoint(packed)


def test_a_truncated_file_is_refused(packed: Path) -> None:
    file = packed / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4096)
    with pytest.raises(CheckpointError, match=r"truncated|bytes"):
        open_checkpoint(packed)


def test_opening_reads_the_header_alone(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of the size of Mixtral opens as fast: nothing is read, nothing is allocated."""
    import numpy as np

    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("read"))
    start = time.perf_counter()
    parts = open_packed(packed).tensors()
    assert time.perf_counter() - start < 1
    assert all(isinstance(p, PackedTensor) or p.dtype == torch.float32 for p in parts.values())


def test_a_config_mark_alone_makes_no_packed_folder(sparse: Path) -> None:
    values = json.loads((sparse / "config.json").read_text()) | {"quantization_config": {"format": "coterie-packed"}}
    (sparse / "config.json").write_text(json.dumps(values))
    assert not is_packed(sparse)
    assert replace(read_model_config(sparse), extra={}).hidden_size == 64
