"""Packed folders: what is written is what is read, the file is what docs/packed.md says, hostile ones are refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint, read_model_config
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.checkpoint.packed import PackedCheckpoint, is_packed, open_packed
from coterie.checkpoint.quantise import quantise_checkpoint
from coterie.checkpoint.verify import verify
from coterie.errors import CheckpointError, CoterieError, RequestError, ResourceError
from coterie.model import Transformer
from coterie.quant.recipe import Recipe
from coterie.quant.tensor import PackedTensor, alternate_halves

MakeModel = Callable[..., Transformer]
KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    "tied": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True},
    "dense": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": None},
    "odd": {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2},  # its experts cannot be packed
    "few heads": {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1,
                  "head_dim": 6, "num_hidden_layers": 1},  # nor can attention.o, which has 18 inputs
}  # fmt: skip


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path: Path) -> Path:
    model = make_model(**{"num_experts_per_tok": 2, **KINDS[request.param]})
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    return tmp_path / "source"


@pytest.fixture
def sparse(make_model: MakeModel, tmp_path: Path, sentencepiece_bytes: bytes) -> Path:
    model = make_model(**KINDS["sparse"], vocab_size=340)
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    (tmp_path / "source" / "tokenizer.model").write_bytes(sentencepiece_bytes)
    return tmp_path / "source"


@pytest.fixture
def packed(sparse: Path, tmp_path: Path) -> Path:
    convert(sparse, tmp_path / "packed", to="packed", type="int4")
    return tmp_path / "packed"


@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
def test_the_file_holds_what_is_quantised_in_memory(source: Path, kind: str, tmp_path: Path) -> None:
    convert(source, tmp_path / "packed", to="packed", type=kind)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert isinstance(checkpoint, PackedCheckpoint) and checkpoint.config == open_checkpoint(source).config
    there, here = checkpoint.tensors(), quantise_checkpoint(open_checkpoint(source), Recipe.of(kind))
    assert list(there) == list(here)
    for name, part in here.items():
        other = there[name]
        if isinstance(part, PackedTensor):
            assert isinstance(other, PackedTensor)
            assert part.format == other.format and part.shape == other.shape, name
            assert torch.equal(part.data, other.data), name
        else:
            assert isinstance(other, torch.Tensor) and other.dtype == part.dtype and torch.equal(part, other), name


def test_both_ways_to_load_agree_with_the_plain_weights(source: Path, tmp_path: Path) -> None:
    plain = load_model(source, dtype="float32").tensors()
    convert(source, tmp_path / "packed", to="packed", type="int8")
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

    models = [load_model(tmp_path / "packed"), load_model(source, quantize="int8")]
    with torch.inference_mode():
        a, b = (m(ids, ids, WholeSequences(1, None)).hidden_TD for m in models)
    assert torch.equal(a, b)


def test_what_cannot_be_packed_is_said_and_stays_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model, said = make_model(**KINDS["odd"]), list[str]()
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="bf16")
    convert(tmp_path / "source", tmp_path / "packed", to="packed", type="int4", notice=said.append)
    assert len(said) == 1
    assert "16 matrices stay bfloat16 because intermediate_size is 48, no multiple of 32" in said[0]
    checkpoint = open_packed(tmp_path / "packed")
    assert checkpoint.stored()["feedforward"].keys() == {"BF16"}
    assert "16 matrices are not packed" in (tmp_path / "packed" / "README.md").read_text()
    load_model(tmp_path / "packed")


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


def test_packed_files_are_not_converted_further(packed: Path, tmp_path: Path) -> None:
    for to in ("huggingface", "mistral", "gguf", "packed"):
        with pytest.raises(RequestError, match="packed"):
            convert(packed, tmp_path / "other", to=to, type="int4" if to == "packed" else None)
    with pytest.raises(RequestError, match="packed already"):
        load_model(packed, quantize="int4")
    with pytest.raises(RequestError, match="float32"):
        load_model(packed, dtype="bf16")


def test_what_is_asked_for_must_exist(sparse: Path, tmp_path: Path) -> None:
    for options, match in (
        ({"to": "packed"}, "--type int8"),
        ({"to": "packed", "type": "int7"}, "int7"),
        ({"to": "packed", "type": "int4", "method": "hq"}, "did you mean 'hqq'"),
        ({"to": "mistral", "method": "hqq"}, "packed"),
    ):
        with pytest.raises(RequestError, match=match):
            convert(sparse, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


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


def test_nan_is_an_error_that_names_the_tensor_and_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(**KINDS["sparse"])
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    file = tmp_path / "source" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    at = start + header["model.embed_tokens.weight"]["data_offsets"][0]
    raw[at : at + 4] = b"\x00\x00\xc0\x7f"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="embed_tokens"):
        convert(tmp_path / "source", tmp_path / "packed", to="packed", type="int4")
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_what_was_cut_off_goes_on_with_the_layers_that_are_done(
    sparse: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.checkpoint import packed_write

    plain, done = packed_write.quantised_parts, list[str]()

    def limited(checkpoint: Any, planned: Any, *rest: Any) -> Any:
        done.append(planned[0].name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return plain(checkpoint, planned, *rest)

    monkeypatch.setattr(packed_write, "quantised_parts", limited)
    target, said = tmp_path / "again", list[str]()
    with pytest.raises(KeyboardInterrupt):
        convert(sparse, target, to="packed", type="int4")
    assert not target.exists()
    with pytest.raises(CoterieError):
        open_checkpoint(tmp_path / "again.partial")
    seen: list[tuple[int, int]] = []
    convert(sparse, target, to="packed", type="int4", notice=said.append, progress=lambda *n: seen.append(n))
    assert "2 of 5 pieces" in said[0]  # embed, layer 0, layer 1, norm, head
    assert done[3:] == ["layers.1.attention.q", "norm", "head"]
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    for name in ("model.safetensors", "SHA256SUMS"):
        assert (target / name).read_bytes() == (packed / name).read_bytes()
    assert not (tmp_path / "again.partial").exists()


def test_another_recipe_starts_anew(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.checkpoint import packed_write

    with monkeypatch.context() as m:
        m.setattr(packed_write, "write_packed_sidecars", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(sparse, tmp_path / "a", to="packed", type="int4")
    said: list[str] = []
    convert(sparse, tmp_path / "a", to="packed", type="int3", notice=said.append)
    convert(sparse, tmp_path / "b", to="packed", type="int3")
    assert said == []
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_two_at_once_do_not_mix(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.checkpoint import packed_write

    plain = packed_write.write_packed_sidecars

    def meanwhile(*parts: Any) -> None:
        monkeypatch.setattr(packed_write, "write_packed_sidecars", plain)
        with pytest.raises(ResourceError, match="another process"):
            convert(sparse, tmp_path / "packed", to="packed", type="int4")
        plain(*parts)

    monkeypatch.setattr(packed_write, "write_packed_sidecars", meanwhile)
    convert(sparse, tmp_path / "packed", to="packed", type="int4")
    verify(tmp_path / "packed").require_ok(tmp_path / "packed")


def test_an_existing_destination_is_refused(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(sparse, tmp_path / "there", to="packed", type="int4")
    (tmp_path / "empty").mkdir()
    convert(sparse, tmp_path / "empty", to="packed", type="int4")


def test_killed_at_any_moment_it_is_whole_or_goes_on(make_model: MakeModel, tmp_path: Path) -> None:
    """SIGKILL after ever more time; what is there afterwards is nothing, an unfinished folder, or the whole."""
    fields = KINDS["sparse"] | {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 256}
    model = make_model(**fields, vocab_size=340)
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    convert(tmp_path / "source", tmp_path / "whole", to="packed", type="int4")
    code = (
        "import coterie.checkpoint.packed_write; from pathlib import Path; "
        "from coterie.checkpoint.convert import convert; print('go', flush=True); "
        f"convert(Path({str(tmp_path / 'source')!r}), Path({str(tmp_path / 'out')!r}), to='packed', type='int4')"
    )
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, None):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert p.stdout is not None and p.stdout.readline() == b"go\n"
        if delay is not None:
            time.sleep(delay)
            p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        if (tmp_path / "out").exists():
            break
        for partial in tmp_path.glob("out.partial"):
            with pytest.raises(CoterieError):
                open_checkpoint(partial)
    for name in ("model.safetensors", "SHA256SUMS", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


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
