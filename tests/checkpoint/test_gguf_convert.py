"""Models of every format as GGUF files and back; the `gguf` package reads what is written and has the same bytes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coterie.checkpoint import convert_plan, pieces
from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.gguf import open_gguf
from coterie.checkpoint.load import load_model
from coterie.checkpoint.vocabulary import open_vocabulary
from coterie.cli.main import main
from coterie.errors import CheckpointError, ConfigError, RequestError
from coterie.tokenizer import load_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_plan, "cut", lambda entry, place, **kw: pieces.cut(entry, place, 512, **kw))


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("source", ["huggingface", "fused", "mistral"])
@pytest.mark.parametrize("changes", [{}, {"num_local_experts": None}, {"tie_word_embeddings": True}])
def test_every_source_gives_the_file_that_the_gguf_package_would_write(
    make_tiny: Callable, source: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    if source == "fused" and "num_local_experts" in changes:
        pytest.skip("a dense model has no experts to fuse")
    tiny = make_tiny(**changes)
    folder = tiny.mistral() if source == "mistral" else tiny.huggingface(fused=source == "fused")
    convert(folder, tmp_path / "ours.gguf", to="gguf")
    ours, theirs = tensors_of(tmp_path / "ours.gguf"), tensors_of(tiny.gguf()[0])
    assert ours.keys() == theirs.keys()
    for name, t in ours.items():
        assert t.tensor_type == theirs[name].tensor_type and np.array_equal(t.data, theirs[name].data), name
    assert all(torch.equal(t, tiny.tensors[n]) for n, t in load_model(tmp_path / "ours.gguf").tensors().items())


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_types_are_written_as_the_gguf_package_writes_them(make_tiny: Callable, type: str, tmp_path: Path) -> None:
    tiny = make_tiny(**WIDE)
    convert(tiny.huggingface(), tmp_path / "x.gguf", to="gguf", type=type)
    kinds = {"attn_q": type.upper(), "ffn_gate_exps": type.upper(), "attn_norm": "F32", "ffn_gate_inp": "F32"}
    kinds |= {"output.weight": "Q8_0" if type == "q4_0" else type.upper(), "output_norm": "F32"}
    expected, found = tensors_of(tiny.gguf("f32")[0]), tensors_of(tmp_path / "x.gguf")
    for name, t in found.items():
        for part, kind in kinds.items():
            if name.rpartition("blk.")[2].partition(".")[2].startswith(part) or name.startswith(part):
                assert t.tensor_type.name == kind, name
        number = gguf.GGMLQuantizationType[t.tensor_type.name]
        assert np.array_equal(t.data.view(np.uint8), gguf.quantize(expected[name].data, number).view(np.uint8)), name
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert (
        fields["general.file_type"].contents()
        == gguf.LlamaFileType[
            {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}.get(type, f"MOSTLY_{type.upper()}")
        ]
    )


def test_the_configuration_survives(make_tiny: Callable, tmp_path: Path) -> None:
    for i, changes in enumerate(
        ({"rms_norm_eps": 3e-6, "rope_theta": 5e5, "sliding_window": 32}, {"eos_token_id": (2, 7)})
    ):
        tiny = make_tiny(**changes)
        convert(tiny.huggingface(f"hf{i}"), tmp_path / f"{i}.gguf", to="gguf")
        convert(tmp_path / f"{i}.gguf", tmp_path / f"back{i}", to="huggingface")
        assert open_checkpoint(tmp_path / f"back{i}").config == tiny.config


@pytest.mark.parametrize("to", ["huggingface", "mistral"])
def test_there_and_back_is_bit_for_bit(make_tiny: Callable, to: str, tmp_path: Path) -> None:
    tiny = make_tiny(torch.bfloat16)
    source = getattr(tiny, to)()
    convert(source, tmp_path / "x.gguf", to="gguf")
    convert(tmp_path / "x.gguf", tmp_path / "back", to=to, type="bf16")
    (back,), (there,) = (list(folder.glob("*.safetensors")) for folder in (tmp_path / "back", source))
    back, there = load_file(back), load_file(there)
    assert back.keys() == there.keys() and all(torch.equal(back[n], there[n]) for n in there)


def test_a_quantised_file_becomes_a_folder_of_its_values(make_tiny: Callable, tmp_path: Path) -> None:
    path, expected = make_tiny(hidden_size=256, intermediate_size=256, head_dim=64).gguf(kind="Q4_K")
    with pytest.raises(RequestError, match=r"numbers of type Q4_K, which huggingface files have not; .*--type bf16"):
        convert(path, tmp_path / "a", to="huggingface")
    with pytest.raises(RequestError, match=r"numbers of type Q4_K, which are not written; .*--type q8_0"):
        convert(path, tmp_path / "a.gguf", to="gguf")
    convert(path, tmp_path / "b", to="huggingface", type="f32")
    found = load_model(tmp_path / "b").tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    convert(path, tmp_path / "c.gguf", to="gguf", type="q8_0")
    assert {e.dtype for e in open_gguf(tmp_path / "c.gguf").entries} == {"F32", "Q8_0"}


def test_rows_that_are_no_whole_blocks_become_f16(tiny: Any, tmp_path: Path) -> None:
    convert(tiny.huggingface(), tmp_path / "x.gguf", to="gguf", type="q8_0")
    assert {e.dtype for e in open_gguf(tmp_path / "x.gguf").entries} == {"F32", "F16"}


def test_tokenizer_and_chat_template_go_along(tiny_folder: Path, tmp_path: Path, mistral_template: str) -> None:
    (tmp_path / "source").mkdir()
    for file in tiny_folder.iterdir():
        (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "source" / "chat_template.jinja").write_text(mistral_template)
    convert(tmp_path / "source", tmp_path / "x.gguf", to="gguf", type="f16")
    tokenizer, form = open_vocabulary(tmp_path / "x.gguf")
    original = load_tokenizer(tiny_folder)
    assert tokenizer is not None and tokenizer.encode("Il était") == original.encode("Il était")
    assert form is not None and form.name == "mistral-v1"
    convert(tmp_path / "x.gguf", tmp_path / "back", to="huggingface")
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == mistral_template
    assert load_tokenizer(tmp_path / "back").encode("été") == original.encode("été")


@pytest.fixture
def mistral_template() -> str:
    """The template of Mixtral-8x7B-Instruct-v0.1 as first published."""
    return (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    )


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(make_tiny: Callable, tmp_path: Path) -> None:
    def damage(named: dict[str, torch.Tensor]) -> None:
        named["model.layers.1.self_attn.v_proj.weight"][3, 4] = float("nan")

    tiny = make_tiny()
    folder = tiny.huggingface()
    (tmp_path / "there.gguf").touch()
    before = sorted(tmp_path.iterdir())
    for path, options, error, said in (
        (tmp_path / "x.bin", {}, RequestError, r"ends in \.gguf"),
        (tmp_path / "there.gguf", {}, CheckpointError, "exists already"),
        (tmp_path / "x.gguf", {"type": "q8_1"}, ConfigError, "did you mean 'q8_0'"),
    ):
        with pytest.raises(error, match=said):
            convert(folder, path, to="gguf", **options)
    assert sorted(tmp_path.iterdir()) == before
    bad = tiny.huggingface("bad", edit=damage)
    with pytest.raises(CheckpointError, match="NaN"):
        convert(bad, tmp_path / "x.gguf", to="gguf")
    assert sorted(tmp_path.iterdir()) == sorted([*before, bad])


def test_numbers_too_large_for_the_scales_are_named(make_tiny: Callable, tmp_path: Path) -> None:
    def grow(named: dict[str, torch.Tensor]) -> None:
        named["lm_head.weight"][0, 0] = 1e30

    folder = make_tiny(**WIDE).huggingface(edit=grow)
    with pytest.raises(CheckpointError, match=r"lm_head.* contains 1e\+30, too much for the scales of Q8_0; use bf16"):
        convert(folder, tmp_path / "x.gguf", to="gguf", type="q8_0")
    with pytest.raises(CheckpointError, match="beyond float16"):
        convert(folder, tmp_path / "x.gguf", to="gguf", type="f16")


def test_weights_that_are_not_renormalised_cannot_be_said(make_tiny: Callable, tmp_path: Path) -> None:
    tiny = make_tiny()
    tiny.config = replace(tiny.config, norm_topk_prob=False)
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        convert(tiny.huggingface(), tmp_path / "x.gguf", to="gguf")


def test_the_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.gguf"
    assert main(["convert", str(tiny_folder), str(target), "--to", "gguf", "--type", "q8_0"]) == 0
    assert "wrote" in capsys.readouterr().err
    assert main(["inspect", str(target)]) == 0
    out = capsys.readouterr().out
    assert "Types in the files" in out and "Q8_0" in out
    assert main(["tokenize", "-m", str(target), "été"]) == 0
    assert main(["generate", "-m", str(target), "Il", "--max-tokens", "2"]) == 0
