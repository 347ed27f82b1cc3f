"""Canonical tensors one at a time, from every layout of a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.checkpoint.by_name import TensorReader
from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.errors import CheckpointError


@pytest.mark.parametrize("layout", ["huggingface", "mistral", "gguf", "packed"])
@pytest.mark.parametrize("kind", ["sparse", "dense", "tied"])
def test_every_tensor_is_the_one_that_is_loaded(layout: str, kind: str, make_model: Any, tmp_path: Path) -> None:
    fields = {"sparse": {}, "dense": {"num_local_experts": None}, "tied": {"tie_word_embeddings": True}}[kind]
    model = make_model(**{"hidden_size": 64, "intermediate_size": 96, **fields})
    save_huggingface(tmp_path / "a", model.config, model.tensors(), dtype="float32")
    path = tmp_path / ("b.gguf" if layout == "gguf" else "b")
    if layout == "huggingface":
        path = tmp_path / "a"
    elif kind == "tied" and layout == "mistral":
        pytest.skip("Mistral's folders tie nothing")
    else:
        convert(tmp_path / "a", path, to=layout, type={"packed": "int8", "gguf": "f32"}.get(layout, "float32"))
    seen = []
    loaded = load_model(path, dtype="float32").tensors()
    with TensorReader(open_checkpoint(path), lambda done, total: seen.append((done, total))) as read:
        assert set(read.shapes) == set(loaded)
        for name, tensor in loaded.items():
            assert torch.equal(read(name), tensor), name
    assert seen[-1][0] == seen[-1][1]


def test_not_a_number_is_refused_by_name(make_model: Any, tmp_path: Path) -> None:
    model = make_model()
    save_huggingface(tmp_path / "a", model.config, model.tensors(), dtype="float32")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, file)
    with TensorReader(open_checkpoint(tmp_path / "a")) as read:
        read("embed")
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*1 NaN"):
            read("norm")
