"""A packed folder made plain: loaded with a dtype, or converted to every other format, the numbers are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from coterie.checkpoint import packed_plain
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import DEMO
from coterie.checkpoint.load import load_model
from coterie.checkpoint.packed import open_packed
from coterie.checkpoint.verify import verify
from coterie.checkpoint.vocabulary import open_vocabulary, template_of
from coterie.errors import CheckpointError, ConfigError, RequestError, ResourceError
from coterie.kernels import cpu
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.quant.layers import PackedExperts
from coterie.quant.tensor import PackedTensor, join_halves


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_plain, "PIECE_BYTES", 10_000)  # two or three panels


def dequantised(folder: Path) -> dict[str, Tensor]:
    """Canonical tensors, float32, from the parts as `quant/tensor.py` defines them."""
    found: dict[str, Any] = {}
    for name, part in open_packed(folder).tensors().items():
        values = part.dequantise() if isinstance(part, PackedTensor) else part.float()
        if ".experts." not in name:
            found[name] = values
            continue
        stem, _, last = name.rpartition(".")
        values = join_halves(values) if last == "gate_up" and isinstance(part, PackedTensor) else values
        found.setdefault(f"{stem.rpartition('.')[0]}.{last}", []).append(values)
    return {name: torch.stack(t) if isinstance(t, list) else t for name, t in found.items()}


def logits(model: Transformer) -> Tensor:
    ids = torch.arange(20)
    with torch.inference_mode():
        out: Tensor = model.head(model(ids, ids, WholeSequences(1, None)).hidden_TD)
    return out


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """All equal as `dtype`; a model keeps its routers in float32, whatever its file had."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].to(dtype), tensor.to(dtype)), name


@pytest.mark.filterwarnings("ignore:.*matrices stay")
@pytest.mark.parametrize("kind", ["int8", "int3"])
def test_a_dtype_makes_plain_weights(packable: Path, kind: str, tmp_path: Path) -> None:
    convert(packable, tmp_path / "packed", to="packed", type=kind)
    expected = dequantised(tmp_path / "packed")
    for name, dtype in (("f32", torch.float32), ("bfloat16", torch.bfloat16), ("f16", torch.float16)):
        model = load_model(tmp_path / "packed", dtype=name)
        assert model.dtype == dtype and not any(isinstance(m, PackedExperts) for m in model.modules())
        assert_same(model.tensors(), expected, model.dtype)
    with cpu.use("reference"):
        plain, stays = (logits(load_model(tmp_path / "packed", dtype=name)) for name in ("float32", "auto"))
    assert torch.allclose(plain, stays, atol=1e-4, rtol=0)


def test_auto_stays_packed(packed: Path) -> None:
    for device in ("auto", "cpu"):
        model = load_model(packed, device=device)
        assert any(isinstance(m, PackedExperts) for m in model.modules())


def test_memory_and_names_are_checked(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="int4"):
        load_model(packed, dtype="int4")
    monkeypatch.setattr("coterie.checkpoint.load.available_memory", lambda device: 1000)
    with pytest.raises(ResourceError, match="as float32"):
        load_model(packed, dtype="f32")


def test_progress_ends_at_the_whole(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(packed, dtype="f32", progress=lambda *done: seen.append(done))
    assert seen[-1] == (open_packed(packed).nbytes,) * 2 and seen == sorted(seen)


@pytest.mark.filterwarnings("ignore:.*matrices stay")
@pytest.mark.parametrize("to", ["huggingface", "mistral", "gguf"])
def test_every_format_gets_the_dequantised_numbers(packable: Path, to: str, tmp_path: Path) -> None:
    convert(packable, tmp_path / "packed", to="packed", type="int4")
    expected = dequantised(tmp_path / "packed")
    for type in ("f32", "f16", None):
        target = tmp_path / f"{to}-{type}{'.gguf' if to == 'gguf' else ''}"
        convert(tmp_path / "packed", target, to=to, type=type)
        model = load_model(target, dtype={None: "bf16"}.get(type, type))
        assert_same(model.tensors(), expected, model.dtype)
        if to != "gguf":
            assert {t.dtype for t in load_file(next(target.glob("*.safetensors"))).values()} == {model.dtype}


def test_the_plain_formats_are_those_of_the_source(packed: Path, tmp_path: Path) -> None:
    """By way of a plain folder or straight from the packed one, a quantised GGUF file is the same."""
    (packed / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    convert(packed, tmp_path / "plain", to="huggingface", type="f32")
    for type in ("q8_0", "q4_0"):
        convert(packed, tmp_path / "packed.gguf", to="gguf", type=type)
        convert(tmp_path / "plain", tmp_path / "plain.gguf", to="gguf", type=type)
        a, b = (load_model(tmp_path / name, dtype="f32").tensors() for name in ("packed.gguf", "plain.gguf"))
        assert_same(a, b)
        assert open_vocabulary(tmp_path / "packed.gguf").tokenizer is not None
        assert template_of(tmp_path / "packed.gguf") == "{{ messages }}"
        (tmp_path / "packed.gguf").unlink()
        (tmp_path / "plain.gguf").unlink()
    names = {p.name for p in (tmp_path / "plain").iterdir()}
    assert names == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert "coterie-packed" not in (tmp_path / "plain" / "config.json").read_text()


def _stop(done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("to", ["huggingface", "mistral", "gguf"])
def test_whole_or_not_at_all(packed: Path, to: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        convert(packed, target, to=to, progress=_stop)
    with pytest.raises((ConfigError, RequestError)):
        convert(packed, target, to=to, type="int4")
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_scale_is_an_error_that_names_the_matrix(packed: Path, tmp_path: Path) -> None:
    part = next(p for p in open_packed(packed).parts if p.name == "layers.1.attention.v")
    with open(packed / "model.safetensors", "r+b") as f:
        f.seek(part.offset)
        f.write(b"\x00\x7e")  # NaN as float16
    for action in (lambda: load_model(packed, dtype="f32"), lambda: convert(packed, tmp_path / "out", to="mistral")):
        _fails(action, r"layers\.1\.attention\.v' contains .* NaN")
    assert not (tmp_path / "out").exists()


def _fails(action: Callable[[], object], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        action()


@pytest.mark.skipif(not (DEMO / "README.md").is_file(), reason="the model that ships is not there yet")
def test_the_model_that_ships_is_packed_and_sound(tmp_path: Path) -> None:
    verify(DEMO).require_ok(DEMO)
    checkpoint = open_packed(DEMO)
    assert checkpoint.recipe.type == "int8" and not checkpoint.about["plain"]
    convert(DEMO, tmp_path / "demo.gguf", to="gguf", type="f16")
    ours, theirs = (open_vocabulary(path).tokenizer for path in (DEMO, tmp_path / "demo.gguf"))
    assert ours is not None and theirs is not None
    assert ours.encode("Straße 42\n\tdef") == theirs.encode("Straße 42\n\tdef")
