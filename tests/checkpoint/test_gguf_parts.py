"""Packed parts of a GGUF file against its dequantised tensors: every number the same, whatever type and naming."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from coterie.checkpoint.gguf import open_gguf, read_header
from coterie.checkpoint.gguf_metadata import config_to_metadata
from coterie.checkpoint.gguf_parts import read_gguf_parts
from coterie.checkpoint.gguf_write import WrittenTensor, write_gguf
from coterie.checkpoint.load import load_model
from coterie.errors import CheckpointError
from coterie.quant import PackedTensor
from coterie.quant.ggml_blocks import GGML_TYPES
from coterie.quant.ggml_quantise import quantise
from coterie.quant.tensor import join_halves

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1, "vocab_size": 50}
QUANTISED = [name for name, t in GGML_TYPES.items() if t.is_quantised]


def numbers(part: PackedTensor | torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part.float()
    whole = part.dequantise()
    return join_halves(whole) if name.endswith("gate_up") else whole


def compare(parts: dict, expected: dict[str, torch.Tensor]) -> None:
    flat = {}
    for name, t in expected.items():
        stem, _, last = name.rpartition(".")
        flat |= {f"{stem}.{e}.{last}": t[e] for e in range(len(t))} if stem.endswith(".experts") else {name: t}
    assert parts.keys() == flat.keys()
    for name, part in parts.items():
        assert torch.equal(numbers(part, name), flat[name]), name


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_type_is_packed_without_loss(make_tiny: Callable, kind: str) -> None:
    path, expected = make_tiny(**WIDE).gguf(kind=kind)
    parts = read_gguf_parts(open_gguf(path))
    compare(parts, expected)
    packed = {name for name, part in parts.items() if isinstance(part, PackedTensor)}
    assert packed == {name for name in parts if not name.endswith(("norm", "router"))}
    assert all(parts[name].dtype == torch.float32 for name in parts.keys() - packed)


@pytest.mark.parametrize("experts", ["merged", "gate_up", "single"])
def test_every_naming_is_packed_alike(make_tiny: Callable, experts: str) -> None:
    path, expected = make_tiny(**WIDE).gguf(kind="Q8_0", experts=experts)
    done = []
    compare(read_gguf_parts(open_gguf(path), lambda *counts: done.append(counts)), expected)
    assert done[-1][0] == done[-1][1] == open_gguf(path).nbytes


def test_a_dense_model(make_tiny: Callable) -> None:
    path, expected = make_tiny(**WIDE, num_local_experts=None).gguf(kind="Q4_K")
    compare(read_gguf_parts(open_gguf(path)), expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_tensors_keep_their_type(make_tiny: Callable, kind: str) -> None:
    path, expected = make_tiny().gguf(kind=kind)
    parts = read_gguf_parts(open_gguf(path))
    compare(parts, expected)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    assert parts["layers.0.moe.experts.3.gate_up"].dtype == dtype and parts["norm"].dtype == torch.float32


def test_a_scale_that_is_not_finite_is_found(make_tiny: Callable) -> None:
    path, _ = make_tiny(**WIDE).gguf(kind="Q8_0")
    entry = next(e for e in open_gguf(path).entries if e.name == "blk.0.attn_k.weight")
    with open(path, "r+b") as f:
        f.seek(entry.offset)
        f.write(np.float16(np.inf).tobytes())
    with pytest.raises(CheckpointError, match=r"attn_k\.weight'.* contains 1 (NaN or )?Inf"):
        read_gguf_parts(open_gguf(path))


def test_a_router_that_was_quantised_is_float_again(make_tiny: Callable) -> None:
    path, expected = make_tiny(**WIDE, num_local_experts=8).gguf(kind="Q4_0")
    parts = read_gguf_parts(open_gguf(path))
    assert parts["layers.0.moe.router"].dtype == torch.float32
    assert torch.equal(parts["layers.0.moe.router"], expected["layers.0.moe.router"])


def test_norms_that_were_quantised_are_float_again(make_tiny: Callable) -> None:
    """They were packed as a matrix would be, and no model takes that."""
    path, expected = make_tiny(**WIDE).gguf(kind="Q8_0")
    quantised, raw = path.with_name("norms.gguf"), path.read_bytes()
    tensors, contents = [], []
    for t in read_header(path).tensors:
        kind, data = t.type.name, raw[t.offset : t.offset + t.nbytes]
        if t.name.endswith("norm.weight"):
            kind, data = "Q8_0", quantise("Q8_0", np.frombuffer(data, np.float32)[None]).tobytes()
        tensors.append(WrittenTensor(t.name, kind, t.shape, len(data)))
        contents.append([data])
    write_gguf(quantised, config_to_metadata(open_gguf(path).config, "x"), tensors, contents)
    norm = read_gguf_parts(open_gguf(quantised))["layers.0.attention_norm"]
    assert norm.dtype == torch.float32 and norm.shape == (256,)
    torch.testing.assert_close(norm, expected["layers.0.attention_norm"], rtol=0, atol=0.05)
    load_model(quantised)


def test_types_may_differ_from_tensor_to_tensor(make_tiny: Callable) -> None:
    kinds = {"ffn_down": "Q6_K", "attn_v": "Q8_0", "token_embd": "F16", "output.weight": "Q6_K", "ffn_gate_inp": "F16"}
    path, expected = make_tiny(**WIDE).gguf(kind="Q4_K", kinds=kinds)
    compare(read_gguf_parts(open_gguf(path)), expected)


def test_gate_and_up_of_different_types_become_q8_0(make_tiny: Callable) -> None:
    path, expected = make_tiny(**WIDE).gguf(kind="Q4_0", kinds={"ffn_up": "Q5_0"})
    part = read_gguf_parts(open_gguf(path))["layers.0.moe.experts.2.gate_up"]
    assert isinstance(part, PackedTensor) and part.format.bits == 8
    error = (numbers(part, "gate_up") - expected["layers.0.moe.experts.gate_up"][2]).abs().max()
    assert error < 0.02 * expected["layers.0.moe.experts.gate_up"].abs().max()
