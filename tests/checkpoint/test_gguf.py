"""GGUF files written by the `gguf` package, opened and loaded here: every type, every naming, split, tied."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import gguf
import numpy as np
import pytest
import torch

from coterie.checkpoint.folder import open_checkpoint, read_model_config
from coterie.checkpoint.gguf import open_gguf, read_header
from coterie.checkpoint.load import load_model
from coterie.errors import CheckpointError, ConfigError
from coterie.quant.ggml_blocks import GGML_TYPES

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_every_type_loads_as_the_gguf_package_reads_it(make_tiny: Callable, kind: str) -> None:
    path, expected = make_tiny(**WIDE).gguf(kind=kind)
    found = load_model(path, dtype="float32").tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found), kind
    assert {e.dtype for e in open_gguf(path).entries} == {"F32", kind}


@pytest.mark.parametrize("experts", ["merged", "gate_up", "single"])
@pytest.mark.parametrize("n_files", [1, 3])
def test_every_naming_loads_whole_or_split(make_tiny: Callable, experts: str, n_files: int) -> None:
    tiny = make_tiny()
    path, expected = tiny.gguf(experts=experts, n_files=n_files)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "gguf" and len(checkpoint.files) == n_files
    assert checkpoint.naming == {"merged": "gguf", "gate_up": "gguf_gate_up", "single": "gguf_per_expert"}[experts]
    found = load_model(path).tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(found[name], tiny.tensors[name]) for name in tiny.tensors)  # F32 is the numbers themselves


def test_a_dense_and_a_tied_model(make_tiny: Callable) -> None:
    for changes in ({"num_local_experts": None}, {"tie_word_embeddings": True}):
        tiny = make_tiny(**changes)
        path, _ = tiny.gguf()
        config = read_model_config(path)
        assert config.num_local_experts == tiny.config.num_local_experts
        assert config.tie_word_embeddings == tiny.config.tie_word_embeddings
        found = load_model(path).tensors()
        assert found.keys() == tiny.tensors.keys()
        assert all(torch.equal(found[name], tiny.tensors[name]) for name in found)


def test_the_configuration_is_read_from_the_keys(make_tiny: Callable) -> None:
    tiny = make_tiny(rope_theta=12345.0, rms_norm_eps=1e-5, max_position_embeddings=77)
    config = open_gguf(tiny.gguf()[0]).config
    assert config.rms_norm_eps == 1e-5 and config.rope_theta == 12345.0
    shape = config.to_fields() | {"bos_token_id": 1, "eos_token_id": 2}
    assert shape == tiny.config.to_fields()


def test_the_type_in_which_it_computes_is_the_files(make_tiny: Callable) -> None:
    for kind, dtype in (("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")):
        checkpoint = open_gguf(make_tiny(**WIDE).gguf(kind, kind=kind)[0])
        assert checkpoint.file_dtype == checkpoint.config.torch_dtype == dtype


def test_rotary_factors_of_one_are_passed_over_and_others_refused(make_tiny: Callable) -> None:
    def factors(value: float) -> Callable:
        return lambda named: named.update({"rope_freqs.weight": np.full(3, value, np.float32)})

    assert open_gguf(make_tiny().gguf(edit=factors(1.0))[0]).config.head_dim == 6
    with pytest.raises(CheckpointError, match="scales the rotary embedding"):
        open_gguf(make_tiny().gguf(edit=factors(8.0))[0])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda named: named.pop("blk.1.ffn_up_exps.weight"), "1 missing (blk.1.ffn_up_exps.weight)"),
        (lambda named: named.update({"blk.0.attn_q.bias": np.zeros(24, np.float32)}), "1 extra (blk.0.attn_q.bias)"),
        (
            lambda named: named.update({"blk.0.ffn_down_exps.weight": np.zeros((3, 16, 20), np.float32)}),
            "1 misshapen (blk.0.ffn_down_exps.weight [3, 16, 20], expected [4, 16, 20])",
        ),
        (lambda named: named.update({"a\nb": np.zeros(2, np.float32)}), r"1 extra ('a\nb')"),
        (lambda named: named.pop("token_embd.weight"), "no tensor 'token_embd.weight'"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(make_tiny: Callable, edit: Callable, said: str) -> None:
    path = make_tiny().gguf(edit=edit)[0]
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path)
    assert said in str(caught.value)


def test_parts_that_are_missing_misnamed_or_named_in_place_of_the_first(make_tiny: Callable) -> None:
    path, _ = make_tiny().gguf(n_files=3)
    second = path.with_name("model-00002-of-00003.gguf")
    with pytest.raises(CheckpointError, match=r"part 2 of 3; name the first, model-00001-of-00003\.gguf"):
        open_gguf(second)
    third = path.with_name("model-00003-of-00003.gguf")
    swapped = second.read_bytes(), third.read_bytes()
    third.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    with pytest.raises(CheckpointError, match="says it is part 2"):
        open_gguf(path)
    third.unlink()
    with pytest.raises(CheckpointError, match=r"1 are not there \(model-00003-of-00003\.gguf"):
        open_gguf(path)
    path.rename(path.with_name("alone.gguf"))
    with pytest.raises(CheckpointError, match=r"part 0 \(from 0\) of 3, and by its name it is part 0 of 1"):
        open_gguf(path.with_name("alone.gguf"))


def test_nan_is_found_while_loading(make_tiny: Callable) -> None:
    def damage(named: dict) -> None:
        named["blk.0.attn_v.weight"][3, 4] = np.nan

    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_v.*NaN"):
        load_model(make_tiny().gguf(edit=damage)[0])


def test_a_mapped_tensor_is_its_bytes(make_tiny: Callable) -> None:
    tiny = make_tiny()
    checkpoint = open_gguf(tiny.gguf()[0])
    entry = next(e for e in checkpoint.entries if e.name == "output_norm.weight")
    data = checkpoint.mapped(entry)
    assert np.array_equal(data.view(np.float32), tiny.tensors["norm"].numpy()) and not data.flags.writeable


def test_the_head_agrees_with_the_gguf_packages_reader(make_tiny: Callable) -> None:
    path, _ = make_tiny(vocab_size=300).gguf(vocabulary=True)
    reader, header = gguf.GGUFReader(path), read_header(path)
    fields = {key for key in reader.fields if not key.startswith("GGUF.")}
    assert fields == header.metadata.keys()
    for key in fields:
        expected, found = reader.fields[key].contents(), header.metadata[key]
        if isinstance(expected, list) and expected and isinstance(expected[0], str):
            found = [raw.decode() for raw in found]
        assert np.array_equal(found, expected) if isinstance(expected, list) else found == expected, key
    assert [(t.name, t.tensor_type.name, tuple(t.shape[::-1].tolist()), t.data_offset) for t in reader.tensors] == [
        (t.name, t.type.name, t.shape, t.offset) for t in header.tensors
    ]


def test_a_file_with_a_vocabulary_of_32_thousand_opens_at_once(make_tiny: Callable) -> None:
    path, _ = make_tiny(vocab_size=32000, num_hidden_layers=8).gguf(vocabulary=True)
    open_gguf(path)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        open_gguf(path)
        seconds.append(time.perf_counter() - start)
    assert median(seconds) < 0.2


def test_opening_needs_no_torch(make_tiny: Callable) -> None:
    path = str(make_tiny().gguf()[0])
    code = f"import sys, coterie.checkpoint.gguf as g; g.open_gguf({path!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_gguf(tmp_path / "absent.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_gguf(tmp_path / "folder.gguf")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama.rope.scaling.type": ("string", "yarn")}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama.rope.scaling.factor": ("float32", 4.0)}, "llama.rope.scaling.factor is '4.0'"),
        ({"llama.expert_gating_func": ("uint32", 2)}, "llama.expert_gating_func"),
        ({"llama.attention.head_count_kv": ("array", [2, 1])}, "llama.attention.head_count_kv differs"),
        ({"llama.rope.dimension_count": ("uint32", 4)}, "llama.rope.dimension_count is 4, expected 6"),
        ({"llama.atention.key_length": ("uint32", 4)}, "did you mean 'attention.key_length'?"),
        ({"llama.expert_used_count": ("uint32", 9)}, "llama.expert_used_count is 9"),
        ({"general.type": ("string", "adapter")}, "general.type is 'adapter'"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(make_tiny: Callable, keys: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_gguf(make_tiny().gguf(keys=keys)[0])
    assert said in str(caught.value)


def test_released_pages_come_again(make_tiny: Callable) -> None:
    checkpoint = open_gguf(make_tiny(vocab_size=4000).gguf()[0])
    entry = next(e for e in checkpoint.entries if e.name == "token_embd.weight")
    checkpoint.release(entry)  # nothing is mapped yet
    before = checkpoint.mapped(entry).copy()
    checkpoint.release(entry)
    assert np.array_equal(checkpoint.mapped(entry), before)
